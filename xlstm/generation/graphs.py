"""A decode step, and a prefill, as one CUDA graph: hundreds of kernels for the price of one launch."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xlstm.models.decoding import Layout

WARM_UP = 3
"""Runs before the capture: kernels compile, libraries allocate their workspaces."""

SHORT = 16_384
"""Tokens of a batch up to which launching the kernels of a prefill takes longer than running them."""
KEPT = 4


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


Read = Callable[[Tensor, Layout], Tensor]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    layout: Layout
    logits: Tensor


class PrefillGraphs:
    """Short prefills from the beginning of all sequences, captured when a length comes a second time.

    The last KEPT shapes are kept, in one pool of memory. What is captured writes to the state that it wrote
    to then: `forget` when that is another.
    """

    def __init__(self) -> None:
        self._seen: set[torch.Size] = set()
        self._kept: OrderedDict[torch.Size, _Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, read: Read, tokens: Tensor, layout: Layout) -> Tensor:
        """What `read` does: tokens (B, S) into the state, and logits (B, vocabulary), until the next call."""
        plain = layout.fresh and layout.rows is None and layout.cu_seqlens is None
        if not plain or tokens.numel() > SHORT:
            return read(tokens, layout)
        shape = tokens.shape
        if shape not in self._seen:
            self._seen.add(shape)
            return read(tokens, layout)  # compiles, and libraries allocate
        if shape not in self._kept:
            self._kept[shape] = self._capture(read, tokens, layout)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shape)
        captured = self._kept[shape]
        captured.tokens.copy_(tokens)
        captured.graph.replay()
        return captured.logits

    def forget(self) -> None:
        self._kept.clear()

    def _capture(self, read: Read, tokens: Tensor, layout: Layout) -> _Captured:
        tokens = tokens.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(tokens.device), torch.cuda.graph(graph, pool=self._pool):
            logits = read(tokens, layout)
        return _Captured(graph, tokens, layout, logits)
