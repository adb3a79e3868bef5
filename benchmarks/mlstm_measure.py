"""How it is measured: medians of many calls by device events, peak memory, errors against float64."""

import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.mlstm_cases import INPUTS, Contender, Problem, Shape, truth

FLUSH_BYTES = 256 * 2**20
"""Written between two calls: no call finds its inputs in the L2 cache, and the host has time to queue the
next."""


Call = Callable[[Callable[[], None]], object]
"""Something to time; it is given a function that sets a mark in between."""


class Clock:
    """Milliseconds between marks: device events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES if self._cuda else 0, dtype=torch.uint8, device=device)

    def flush(self) -> None:
        self._flush.zero_()

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spans(self, marks: list[list[Any]]) -> list[list[float]]:
        """Of every call, the times between its marks."""
        if self._cuda:
            torch.cuda.synchronize()
            return [[a.elapsed_time(b) for a, b in pairwise(row)] for row in marks]
        return [[(b - a) * 1e3 for a, b in pairwise(row)] for row in marks]


def time_calls(call: Call, device: torch.device, budget_s: float) -> list[float]:
    """Medians of the times between the marks that `call` sets, in 5 to 100 calls, as fit `budget_s`."""
    clock = Clock(device)
    calls = _calls(call, clock)
    warm = clock.spans(list(islice(calls, 2)))
    each = max(sum(warm[-1]) * 1e-3, 1e-4)
    times = clock.spans(list(islice(calls, min(100, max(5, int(budget_s / each))))))
    return [median(column) for column in zip(*times, strict=True)]


def _calls(call: Call, clock: Clock) -> Iterator[list[Any]]:
    while True:
        clock.flush()
        marks: list[Any] = []

        def mark(marks: list[Any] = marks) -> None:
            marks.append(clock.mark())

        mark()
        call(mark)
        mark()
        yield marks


def backward(problem: Problem, h: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(h, problem.leaves, problem.dh)


def measure_speed(
    contender: Contender, shape: Shape, device: torch.device, budget_s: float
) -> dict[str, Any]:
    """Milliseconds and peak memory. If the backward pass fails, its error stands beside the forward times."""
    problem = contender.build(shape, device, contender.dtype)
    if contender.recorded:
        return _time_recorded(problem, device, budget_s)
    row: dict[str, Any] = {"ms_forward": _time_forward(problem, device, budget_s)}
    try:
        row |= {"peak_bytes": _peak_memory(problem, device)} | _time_training(problem, device, budget_s)
    except Exception as error:
        row["backward_error"] = describe(error)
    return row


def _time_forward(problem: Problem, device: torch.device, budget_s: float) -> float:
    with torch.no_grad():
        return time_calls(lambda mark: problem.forward(), device, budget_s)[0]


def _time_training(problem: Problem, device: torch.device, budget_s: float) -> dict[str, float]:
    def call(mark: Callable[[], None]) -> None:
        h = problem.forward()
        mark()
        backward(problem, h)

    forward, back = time_calls(call, device, budget_s)
    return {"ms_forward_backward": forward + back, "ms_backward": back}


def _time_recorded(problem: Problem, device: torch.device, budget_s: float) -> dict[str, float]:
    """A graph of the forward pass, and one of both."""
    from xlstm.generation.graphs import StepGraph

    def forward() -> Tensor:
        with torch.no_grad():
            return problem.forward()

    def both() -> tuple[Tensor, ...]:
        return backward(problem, problem.forward())

    def replayed(work: Callable[[], Any]) -> float:
        graph = StepGraph(work, device)
        return time_calls(lambda mark: graph.replay(), device, budget_s)[0]

    ahead, whole = replayed(forward), replayed(both)
    return {"ms_forward": ahead, "ms_forward_backward": whole, "ms_backward": whole - ahead}


def _peak_memory(problem: Problem, device: torch.device) -> int | None:
    """Of one forward and backward pass, inputs and gradients included."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    backward(problem, problem.forward())
    return torch.cuda.max_memory_allocated()


def warm_up(contender: Contender, shape: Shape, device: torch.device) -> dict[str, Any]:
    """Compile all that a measurement runs."""
    problem = contender.build(shape, device, contender.dtype)
    with torch.no_grad():
        problem.forward()
    backward(problem, problem.forward())
    return {}


def measure_errors(contender: Contender, shape: Shape, device: torch.device) -> dict[str, Any]:
    """||x - exact|| / ||exact|| of h and every gradient; nan if anything in it is."""
    problem = contender.build(shape, device, contender.dtype)
    h = problem.forward()
    outputs = [h.detach(), *backward(problem, h)]
    outputs = [problem.to_tokens_first(x).double() for x in outputs]
    exact = truth(shape, device, contender.dtype, contender.cell)
    names = ("h", *INPUTS)
    return {
        "errors": {
            name: ((x - exact[name]).norm() / exact[name].norm()).item()
            for name, x in zip(names, outputs, strict=True)
        }
    }


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written a second by a device-to-device copy of `size` bytes."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    milliseconds = time_calls(lambda mark: target.copy_(source), device, 0.1)[0]
    return 2 * size / (milliseconds * 1e-3)


def describe(error: BaseException) -> str:
    """One line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
