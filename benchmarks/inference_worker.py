"""A process of the inference benchmark: it prepares one model, says so, and measures when it is told to.

Every process of the benchmark prepares at the same time, which is mostly compiling, and they measure one
after the other, alone on the device. Lines of JSON on standard output: ready, rows, done.
"""

import gc
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inference_cases import Job
from benchmarks.inference_peers import PeerEngine, peer_model
from xlstm.generation import Session, random_model
from xlstm.timing.engines import SessionEngine
from xlstm.timing.machine import versions
from xlstm.timing.measure import DTYPES, device_limits, device_name, peak_memory, seconds
from xlstm.timing.points import Point

CHECKED_PROMPT, CHECKED_STEPS, CHECKED_BATCHES = 320, 6, (1, 5)
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Of the relative difference between logits of prefill and decode and those of one forward pass."""

AnyEngine = SessionEngine | PeerEngine

_ANSWERS = os.fdopen(os.dup(1), "w")


def main(job: Job) -> None:
    """Prepare, wait for `go SECONDS` on standard input, measure until the seconds are over."""
    os.dup2(2, 1)  # a library may print
    device = torch.device(job.points[0].device)
    if device.type == "cpu":
        torch.set_num_threads(job.points[0].threads)
    with torch.inference_mode():
        model = _build(job, device)
        try:
            checked = check(job, model, device)
        except Exception as error:
            if job.engine == "ours" or not job.graph:
                raise
            print(f"{job.name}: no graph: {type(error).__name__}: {error}", file=sys.stderr)
            _again_without_graph()
        model.to("cpu")  # the device's memory is another process's until it is our turn
        _release(device)
        say(event="ready", checked=checked)
        limit = float(sys.stdin.readline().split()[1])
        model.to(device)
        end = time.monotonic() + limit
        for number, point in enumerate(job.points):
            if time.monotonic() > end:
                say(event="left", points=len(job.points) - number)
                break
            say(event="row", **measure_point(job, model, point, device))
    say(event="done")


def _again_without_graph() -> None:
    """A capture that failed may leave the device in any state: begin again, in a fresh process."""
    os.dup2(_ANSWERS.fileno(), 1)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.inference", *sys.argv[1:], "--eager"])


def limits(device: str, dtype: str) -> None:
    """What the device does at best."""
    target = torch.device(device)
    found = device_limits(target, DTYPES[dtype])
    say(event="limits", device=device_name(target), versions=versions(), **found)


def check(job: Job, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Logits of prefill and of fed steps against those of one forward pass over all tokens, same dtype.

    With one sequence and with several, which take other kernels; the worst of them.
    """
    found = [_difference(job, model, device, batch_size) for batch_size in CHECKED_BATCHES]
    error, agree = max(error for error, _ in found), min(agree for _, agree in found)
    return {"error": error, "argmax_agree": agree, "passed": error < TOLERANCE[job.points[0].dtype]}


def _difference(job: Job, model: nn.Module, device: torch.device, batch_size: int) -> tuple[float, float]:
    """Relative error of the logits, and the share of positions with the same likeliest token."""
    point = replace(
        job.points[0], prefill_length=CHECKED_PROMPT, batch_size=batch_size, generated=CHECKED_STEPS
    )
    shape = (batch_size, CHECKED_PROMPT + CHECKED_STEPS)
    tokens = torch.randint(point.model.vocab_size, shape, device=device, generator=_seeded(device))
    engine = _engine(job, model, point)
    engine.reset()
    engine.prefill(tokens[:, :CHECKED_PROMPT])
    found = [_logits(engine).clone()]
    for j in range(CHECKED_PROMPT, tokens.shape[1]):
        _tokens(engine).copy_(tokens[:, j])
        engine.steps(1)
        found.append(_logits(engine).clone())
    whole = model(tokens) if job.engine == "ours" else model(input_ids=tokens, use_cache=False).logits
    expected = whole[:, CHECKED_PROMPT - 1 :].float()
    got = torch.stack(found, 1).float()
    error = float((got - expected).norm() / expected.norm())
    return error, float((got.argmax(-1) == expected.argmax(-1)).float().mean())


def measure_point(job: Job, model: nn.Module, point: Point, device: torch.device) -> dict[str, Any]:
    """A row: times, memory, or why there is none."""
    row = {"engine": job.engine, "step_bytes": point.step_bytes, **point.describe(job.size)}
    _release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        row |= _times(job, model, point, device)
    except (RuntimeError, ValueError) as error:  # out of memory, or refused for want of it
        row |= {"status": "failed", "error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return row


def _times(job: Job, model: nn.Module, point: Point, device: torch.device) -> dict[str, Any]:
    engine = _engine(job, model, point)
    prompts = torch.randint(
        point.model.vocab_size,
        (point.batch_size, point.prefill_length),
        device=device,
        generator=_seeded(device),
    )
    whole = point.batch_size * point.prefill_length <= job.whole_prefill
    ttft, steps = [], []
    for repetition in range(1 + point.repetitions):
        if whole:
            engine.reset()
            first = seconds(lambda: engine.prefill(prompts), device)
        elif not repetition:
            _fill(job, model, point, engine, prompts[:1])
        each = seconds(lambda: engine.steps(point.generated), device) / point.generated
        if repetition:
            ttft += [first] if whole else []
            steps.append(each)
        if not whole:
            _rewind(engine, point)
    return {
        "status": "finished",
        "ttft_s": sorted(ttft)[len(ttft) // 2] if ttft else None,
        "step_time_s": sorted(steps)[len(steps) // 2],
        "ttft_spread": (max(ttft) - min(ttft)) / min(ttft) if ttft else None,
        "step_time_spread": (max(steps) - min(steps)) / min(steps),
        "memory_bytes": float(peak_memory(device)),
        "decode": engine.decode,
        "device": device_name(device),
        "torch": torch.__version__,
    }


def _fill(job: Job, model: nn.Module, point: Point, engine: AnyEngine, prompt: Tensor) -> None:
    """Have every sequence of the batch go on from one prompt: prefill it alone and copy what it leaves."""
    alone = _engine(job, model, replace(point, batch_size=1))
    alone.prefill(prompt)
    if isinstance(engine, PeerEngine):
        assert isinstance(alone, PeerEngine)
        engine.adopt(alone, prompt)
        return
    assert isinstance(alone, SessionEngine)
    source, target = alone.session, engine.session
    engine.reset()
    for old, new in zip(source.state.blocks, target.state.blocks, strict=True):
        for one, many in zip(old, new, strict=True):
            many.copy_(one.expand_as(many))
    target.tokens.copy_(source.tokens.expand_as(target.tokens))
    _rewind(engine, point)


def _rewind(engine: AnyEngine, point: Point) -> None:
    """Back to the end of the prompt: an mLSTM goes on from where it is, which takes the same time."""
    if isinstance(engine, SessionEngine):
        engine.session._set_lengths([point.prefill_length] * point.batch_size)
    else:
        engine.rewind(point.prefill_length)


def _build(job: Job, device: torch.device) -> nn.Module:
    point = job.points[0]
    if job.engine == "ours":
        return random_model(point.model, device=device, dtype=DTYPES[point.dtype])
    return peer_model(point.model, device, DTYPES[point.dtype])


def _engine(job: Job, model: nn.Module, point: Point) -> AnyEngine:
    capacity = point.prefill_length + point.generated
    if isinstance(model, nn.Module) and job.engine == "transformers":
        return PeerEngine(model, point.batch_size, capacity, graph=job.graph and point.device == "cuda")
    session = Session(model, point.batch_size, capacity, state_dtype=DTYPES[point.state_dtype])  # type: ignore[arg-type]
    return SessionEngine(session)


def _logits(engine: AnyEngine) -> Tensor:
    found = engine.session.logits if isinstance(engine, SessionEngine) else engine.logits
    assert found is not None
    return found


def _tokens(engine: AnyEngine) -> Tensor:
    return engine.session.tokens if isinstance(engine, SessionEngine) else engine.tokens


def _seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _release(device: torch.device) -> None:
    """Give back what nothing refers to: other processes of the benchmark share the device's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # raises where the device is lost: then this process must end
        torch.cuda.empty_cache()


def say(**fields: Any) -> None:
    """One line for the benchmark."""
    print(json.dumps(fields), file=_ANSWERS, flush=True)
