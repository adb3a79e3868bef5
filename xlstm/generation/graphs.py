"""A decode step, and a prefill, as one CUDA graph: hundreds of kernels for the price of one launch."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlstm.models.decoding import Layout

WARM_UP = 3
"""Runs before the capture: kernels compile, libraries allocate their workspaces."""

HOST_BOUND = 4.5e11
"""Tokens of a batch times weights of a block, up to which a GPU may take less time for a block of a prefill
than its host takes to launch it: 8,192 tokens at 1.4B, 32,768 at 400M. A slow host takes 1.4 ms for a block,
an H100 then multiplies at 650 TFLOP/s."""
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
            # Other threads may go on: a session whose cache grows captures in the middle.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                run()

    def replay(self) -> None:
        self._graph.replay()


Read = Callable[[Tensor, Layout], Tensor]
Fits = Callable[[torch.Size], bool]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    layout: Layout
    logits: Tensor


class PrefillGraphs:
    """Prefills from the beginning of all sequences, captured where launching them takes longer than running.

    Of the last KEPT shapes, which are remembered, one that comes again is captured: lengths that all differ,
    or more than KEPT in turn, are never slower than without. The capture itself takes longer than reading
    would, once. All of them share one pool of memory. What is captured writes to the state that it wrote to
    then: `forget` when that is another.
    """

    def __init__(self, most_tokens: int) -> None:
        self.replayed = False
        """Whether the last prefill was a captured one."""
        self.held = 0
        """Bytes of the pool, which no other prefill can use."""
        self._most_tokens = most_tokens
        self._recent: OrderedDict[torch.Size, _Captured | None] = OrderedDict()
        self._pool: Any = None

    def __call__(self, read: Read, fits: Fits, tokens: Tensor, layout: Layout) -> Tensor:
        """What `read` does: tokens (B, S) into the state, and logits (B, vocabulary), until the next call.

        `fits` says whether there is memory for the activations of such a shape once more. Neither is kept.
        """
        self.replayed = False
        plain = layout.fresh and layout.rows is None and layout.cu_seqlens is None
        if not plain or tokens.numel() > self._most_tokens:
            return read(tokens, layout)
        shape = tokens.shape
        seen, captured = shape in self._recent, self._recent.pop(shape, None)
        # The first time everything compiles, and libraries allocate.
        if captured is None and seen and fits(shape):
            captured = self._capture(read, tokens, layout)
        self._recent[shape] = captured
        if len(self._recent) > KEPT:
            self._recent.popitem(last=False)
        if captured is None:
            return read(tokens, layout)
        captured.tokens.copy_(tokens)
        captured.graph.replay()
        self.replayed = True
        return captured.logits

    def forget(self) -> None:
        """Give the memory back; what comes again is captured again."""
        self._recent.clear()
        self.held = 0

    def _capture(self, read: Read, tokens: Tensor, layout: Layout) -> _Captured:
        if not any(self._recent.values()):  # a pool ends with the last graph that it serves
            self._pool, self.held = torch.cuda.graph_pool_handle(), 0
        tokens = tokens.clone()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on here too.
        captures = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with torch.cuda.device(tokens.device), captures:
            before = torch.cuda.memory_reserved()
            logits = read(tokens, layout)
            self.held += torch.cuda.memory_reserved() - before
        return _Captured(graph, tokens, layout, logits)
