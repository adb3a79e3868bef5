"""A decode step as one CUDA graph: hundreds of kernels for the price of one launch."""

from collections.abc import Callable

import torch

WARM_UP = 3
"""Runs before the capture: kernels compile, libraries allocate their workspaces."""


class StepGraph:
    """A captured function without arguments, that reads and writes tensors of fixed address."""

    def __init__(self, run: Callable[[], None], device: torch.device) -> None:
        """Runs `run` a few times, then captures it: the caller puts right what these runs changed."""
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                run()

    def replay(self) -> None:
        self._graph.replay()
