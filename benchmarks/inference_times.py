"""One model's points timed on an engine: the first token, the step, memory, and where the time goes.

Every row comes to its steps on the same way: the step is captured, the session reads prompts, and where these
are not those of the point the state of the point is put in their place. Steps that do not count go before: a
GPU that rested needs up to a second until its steps take the time that they then keep.
"""

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median_high
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inference_cases import Job
from benchmarks.inference_peers import PeerEngine
from benchmarks.inference_profile import profiled
from xlstm.generation import Session
from xlstm.timing.engines import SessionEngine
from xlstm.timing.measure import DTYPES, device_name, peak_memory, seconds
from xlstm.timing.points import Point

AGREE, SETTLED_S, FIRST_S, MOST_S = 0.005, 0.4, 1.0, 1.5
"""Steps are timed until the last repetitions agree so far and this many seconds have passed, of a process's
first point more; the last ones count. A step of 0.81 ms began with 0.85 ms (H100, 400M, four sequences), and
may stay at that for 0.1 s."""
TIMED_S, FEWEST = 0.1, 4
"""A repetition of steps; never fewer steps than that."""
ENOUGH_S = 0.6
"""Of prefills, warm-ups among them, after which one that counts will do."""
PROFILED_STEPS = 4

AnyEngine = SessionEngine | PeerEngine


def measure_point(job: Job, model: nn.Module, point: Point, device: torch.device) -> dict[str, Any]:
    """A row: times, memory, or why there is none."""
    row = {"engine": job.engine, "step_bytes": point.step_bytes, **point.describe(job.size)}
    release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        row |= _times(job, model, point, device)
    except (RuntimeError, ValueError) as error:  # out of memory, or refused for want of it
        row |= {"status": "failed", "error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return row


def _times(job: Job, model: nn.Module, point: Point, device: torch.device) -> dict[str, Any]:
    engine, ttft = at_the_prompts_end(job, model, point, device)
    steps = _time_steps(engine, point, device, FIRST_S if point is job.points[0] else SETTLED_S)
    return {
        "status": "finished",
        "ttft_s": median_high(ttft) if ttft else None,
        "step_time_s": median_high(steps),
        "ttft_spread": _spread(ttft) if ttft else None,
        "step_time_spread": _spread(steps),
        "memory_bytes": float(peak_memory(device)),
        "decode": engine.decode,
        "prefill": "graph" if _replayed(engine) else "eager",
        "device": device_name(device),
        "torch": torch.__version__,
    }


def at_the_prompts_end(
    job: Job, model: nn.Module, point: Point, device: torch.device
) -> tuple[AnyEngine, list[float]]:
    """An engine that has read the prompts of the point, and the seconds that it took for that, each time.

    No times where the batch has more tokens than are prefilled: then every sequence goes on from one prompt,
    that was read alone, after it has read a shorter one.
    """
    prompts = prompts_of(point, device)
    whole = point.batch_size * point.prefill_length <= job.whole_prefill
    alone = None
    if not whole:
        alone = make_engine(job, model, replace(point, batch_size=1), decodes=False)
        alone.prefill(prompts[:1])
        prompts = prompts[:, : job.short_prefill(point)]
    engine = make_engine(job, model, point)
    if alone is not None:
        engine.reset()
        engine.prefill(prompts)
        _adopt(engine, alone)
        _rewind(engine, point)
        return engine, []
    return engine, _time_prefills(engine, prompts, point.repetitions)


def _time_prefills(engine: AnyEngine, prompts: Tensor, repetitions: int) -> list[float]:
    """Seconds of each that counts: not the first, which compiles, nor the one that is captured."""
    found: list[float] = []
    spent, captured = 0.0, False
    for number in range(2 + repetitions):
        engine.reset()
        taken = seconds(lambda: engine.prefill(prompts), prompts.device)
        spent += taken
        captures = _replayed(engine) and not captured
        captured = _replayed(engine)
        if number and not captures:
            found.append(taken)
        if len(found) == repetitions or (found and spent > ENOUGH_S):
            break
    return found


def _replayed(engine: AnyEngine) -> bool:
    return isinstance(engine, SessionEngine) and engine.session.prefill_replayed


def _time_steps(engine: AnyEngine, point: Point, device: torch.device, least_s: float) -> list[float]:
    """Seconds of a step, of each repetition that counts."""

    def each(count: int, runs: int = 1) -> float:
        total = 0.0
        for _ in range(runs):
            _rewind(engine, point)
            total += seconds(lambda: engine.steps(count), device)
        return total / (runs * count)

    each(1)  # a peer captures
    fewest = min(FEWEST, point.generated)
    guess = each(fewest)
    count = min(point.generated, max(fewest, int(TIMED_S / guess)))
    runs = max(1, int(TIMED_S / (count * guess)))
    found: list[float] = []
    begin = time.monotonic()
    while True:
        found.append(each(count, runs))
        last, passed = found[-point.repetitions :], time.monotonic() - begin
        agreed = len(last) == point.repetitions and _spread(last) <= AGREE
        if (agreed and passed > least_s) or (len(last) == point.repetitions and passed > MOST_S):
            return last


def profile_point(job: Job, model: nn.Module, point: Point, device: torch.device) -> Iterator[dict[str, Any]]:
    """Where the time of a prefill goes, if the point has one, and that of a step."""
    engine, ttft = at_the_prompts_end(job, model, point, device)
    prompts = prompts_of(point, device)
    base = {"engine": job.engine, **point.describe(job.size)}

    def prefill() -> None:
        engine.reset()
        engine.prefill(prompts)

    def steps() -> None:
        _rewind(engine, point)
        engine.steps(PROFILED_STEPS)

    if ttft:
        yield {**base, "what": "prefill", **profiled(prefill, device)}
    steps()
    yield {**base, "what": "step", **profiled(steps, device, PROFILED_STEPS)}


def make_engine(job: Job, model: nn.Module, point: Point, *, decodes: bool = True) -> AnyEngine:
    """For the batch and the length of a point; its step captured only if it is to decode."""
    capacity = point.prefill_length + point.generated
    if job.engine == "transformers":
        graph = decodes and job.graph and point.device == "cuda"
        return PeerEngine(model, point.batch_size, capacity, graph=graph)
    session = Session(
        model,  # type: ignore[arg-type]
        point.batch_size,
        capacity,
        state_dtype=DTYPES[point.state_dtype],
        cuda_graph=None if decodes else False,
    )
    return SessionEngine(session)


def _adopt(engine: AnyEngine, alone: AnyEngine) -> None:
    """Have every sequence go on where the only one of another engine is."""
    if isinstance(engine, PeerEngine):
        assert isinstance(alone, PeerEngine)
        engine.adopt(alone)
        return
    assert isinstance(alone, SessionEngine)
    source, target = alone.session, engine.session
    for old, new in zip(source.state.blocks, target.state.blocks, strict=True):
        for one, many in zip(old, new, strict=True):
            many.copy_(one.expand_as(many))
    target.tokens.copy_(source.tokens.expand_as(target.tokens))


def _rewind(engine: AnyEngine, point: Point) -> None:
    """Back to the end of the prompt: an mLSTM goes on from where it is, which takes the same time."""
    if isinstance(engine, SessionEngine):
        engine.session._set_lengths([point.prefill_length] * point.batch_size)
    else:
        engine.rewind(point.prefill_length)


def prompts_of(point: Point, device: torch.device) -> Tensor:
    shape = (point.batch_size, point.prefill_length)
    return torch.randint(point.model.vocab_size, shape, device=device, generator=seeded(device))


def _spread(times: list[float]) -> float:
    return (max(times) - min(times)) / min(times)


def seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def release(device: torch.device) -> None:
    """Give back what nothing refers to: other processes of the benchmark share the device's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # raises where the device is lost: then this process must end
        torch.cuda.empty_cache()
