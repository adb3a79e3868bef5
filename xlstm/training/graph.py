"""A training step, forward and backward, recorded as a CUDA graph once and replayed from then on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Steps before the recording: they compile, choose kernels and allocate. Weights are not touched by them."""


class StepGraph:
    """Calls `step`, which leaves gradients in `parameters` and returns the loss, without the host's time.

    Gradients stay where they were recorded, so nobody may drop them: every replay writes them anew. `step`
    may depend on the values of its argument and not on anything that the host would have to ask the device.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self._step = step
        self._parameters = parameters
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input = self._loss = torch.empty(0)

    def __call__(self, windows: Tensor) -> Tensor:
        """The loss of a batch, which has the shape of the first; its gradients are in the parameters."""
        if self._graph is None:
            self._record(windows)
        assert self._graph is not None
        self._input.copy_(windows, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()

    def _record(self, windows: Tensor) -> None:
        self._input = windows.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forget_gradients()
                self._step(self._input)
        torch.cuda.current_stream().wait_stream(stream)
        # Gradients that are not there yet are allocated in the graph's own memory, and written, not added to.
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._loss = self._step(self._input)
        self._graph = graph

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
