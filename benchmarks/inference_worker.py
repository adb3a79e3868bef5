"""A process of the inference benchmark: it prepares one model, says so, and measures when it is told to.

Every process of the benchmark prepares at the same time, which is mostly compiling; when all are ready they
measure one after the other, alone on the device. Lines of JSON on standard output: ready, rows, done.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inference_cases import Job
from benchmarks.inference_peers import peer_model
from benchmarks.inference_times import AnyEngine, make_engine, measure_point, profile_point, release, seeded
from kernels.backends import ENVIRONMENT_VARIABLE
from xlstm.generation import random_model
from xlstm.timing.engines import SessionEngine
from xlstm.timing.machine import versions
from xlstm.timing.measure import DTYPES, device_limits, device_name

CHECKED_PROMPT, CHECKED_STEPS, CHECKED_BATCHES = 320, 6, (1, 5, 13)
NOISE = {"fp32": 1e-4, "bf16": 6e-2}
"""The most by which logits of one forward pass may be off those of the same weights in float32. In bfloat16
an mLSTM of 24 random blocks is off by 0.029 in plain PyTorch, a Transformer by 0.011."""
ROUNDED_GATES = 3
"""Times that for transformers' mLSTM, whose gates are computed in the model's dtype: 8 blocks on a CPU are
off by 0.059 as they are, by 0.020 with the gates' maps in float32."""
WORSE, ROOM = 1.5, 1e-4
"""Prefill and decode may be off by so many times what the forward pass in the same dtype is, and this."""

_ANSWERS = os.fdopen(os.dup(1), "w")


def main(job: Job, profile: bool = False) -> None:
    """Prepare, wait for `go SECONDS` on standard input, measure until the seconds are over."""
    os.dup2(2, 1)  # a library may print
    device = torch.device(job.points[0].device)
    if device.type == "cpu":
        torch.set_num_threads(job.points[0].threads)
    with torch.inference_mode():
        model = _build(job, device, DTYPES[job.points[0].dtype])
        try:
            checked = check(job, model, device)
        except Exception as error:
            if job.engine == "ours" or not job.graph:
                raise
            print(f"{job.name}: no graph: {type(error).__name__}: {error}", file=sys.stderr)
            _again_without_graph()
        model.to("cpu")  # the device's memory is another process's until it is our turn
        release(device)
        gc.freeze()  # every capture collects, which takes longer than it does for what is not to go any more
        say(event="ready", checked=checked)
        limit = float(sys.stdin.readline().split()[1])
        model.to(device)
        end = time.monotonic() + limit
        for number, point in enumerate(job.points):
            if time.monotonic() > end:
                say(event="left", points=len(job.points) - number)
                break
            row = measure_point(job, model, point, device)
            say(event="row", **row)
            if profile and row["status"] == "finished":
                for found in profile_point(job, model, point, device):
                    say(event="profile", **found)
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
    """Logits of prefill and of fed steps, and those of one forward pass, each against float32.

    Two computations in bfloat16 differ by the noise of both, which grows with the depth and says nothing
    about a fault. So the measure is a forward pass in float32 of the same (rounded) weights: prefill and
    decode must be nearly as close to it as a forward pass in the dtype is, and that pass no further off than
    rounding explains. With one sequence and with several, which take other kernels; the worst of them.
    """
    exact = _build(job, device, torch.float32)
    exact.load_state_dict(model.state_dict())
    found = [_errors(job, model, exact, device, batch_size) for batch_size in CHECKED_BATCHES]
    noise = NOISE[job.points[0].dtype]
    if job.engine == "transformers" and job.arch == "mlstm":
        noise *= ROUNDED_GATES
    worst = max(found, key=lambda errors: errors["error"] - WORSE * errors["forward_error"])
    passed = all(
        errors["error"] <= WORSE * errors["forward_error"] + ROOM and errors["forward_error"] <= noise
        for errors in found
    )
    return {**worst, "argmax_agree": min(errors["argmax_agree"] for errors in found), "passed": passed}


def _errors(
    job: Job, model: nn.Module, exact: nn.Module, device: torch.device, batch_size: int
) -> dict[str, float]:
    """Relative errors of prefill and decode and of a forward pass, and how often their likeliest tokens are
    the exact ones."""
    point = replace(
        job.points[0], prefill_length=CHECKED_PROMPT, batch_size=batch_size, generated=CHECKED_STEPS
    )
    shape = (batch_size, CHECKED_PROMPT + CHECKED_STEPS)
    tokens = torch.randint(point.model.vocab_size, shape, device=device, generator=seeded(device))
    engine = make_engine(job, model, point)
    engine.reset()
    engine.prefill(tokens[:, :CHECKED_PROMPT])
    logits = [_logits(engine).clone()]
    for j in range(CHECKED_PROMPT, tokens.shape[1]):
        _tokens(engine).copy_(tokens[:, j])
        engine.steps(1)
        logits.append(_logits(engine).clone())
    decoded = torch.stack(logits, 1)
    whole = _forward(job, model, tokens)
    with _plain_kernels():
        expected = _forward(job, exact, tokens)
    return {
        "error": _relative(decoded, expected),
        "forward_error": _relative(whole, expected),
        "argmax_agree": _agreement(decoded, expected),
        "forward_argmax_agree": _agreement(whole, expected),
    }


def _forward(job: Job, model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits (B, 1 + CHECKED_STEPS, vocabulary) behind the prompt, of one pass."""
    whole = model(tokens) if job.engine == "ours" else model(input_ids=tokens, use_cache=False).logits
    return whole[:, CHECKED_PROMPT - 1 :].float()


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def _agreement(found: Tensor, expected: Tensor) -> float:
    return float((found.argmax(-1) == expected.argmax(-1)).float().mean())


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Our operators by their PyTorch references: nothing to compile, and independent of what is checked."""
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = "reference"
    try:
        yield
    finally:
        del os.environ[ENVIRONMENT_VARIABLE]
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


def _build(job: Job, device: torch.device, dtype: torch.dtype) -> nn.Module:
    config = job.points[0].model
    if job.engine == "ours":
        return random_model(config, device=device, dtype=dtype)
    return peer_model(config, device, dtype)


def _logits(engine: AnyEngine) -> Tensor:
    found = engine.session.logits if isinstance(engine, SessionEngine) else engine.logits
    assert found is not None
    return found


def _tokens(engine: AnyEngine) -> Tensor:
    return engine.session.tokens if isinstance(engine, SessionEngine) else engine.tokens


def say(**fields: Any) -> None:
    """One line for the benchmark."""
    print(json.dumps(fields), file=_ANSWERS, flush=True)
