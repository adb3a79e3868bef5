"""A point in a process of its own: measured for real, and broken in every way."""

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tasks import inference
from tasks.inference_points import WORKER, ask, measure_limits, measure_point
from tasks.state import State
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.timing.points import Point

SABOTEUR = (sys.executable, str(Path(__file__).with_name("inference_saboteur.py")))
POINT = Point(
    model=mlstm_config(d_model=16, num_blocks=1, num_heads=1, vocab_size=61, ffn_multiple_of=8),
    prefill_length=70,
    batch_size=2,
    generated=3,
    dtype="fp32",
    device="cpu",
)


@pytest.mark.parametrize("arch", ["mlstm", "transformer"])
def test_a_point_is_measured(tmp_path: Path, arch: str) -> None:
    model = POINT.model
    if arch == "transformer":
        model = transformer_config(d_model=16, num_blocks=1, num_heads=2, vocab_size=61, ffn_multiple_of=8)
    found = measure_point(replace(POINT, model=model), tmp_path, timeout_s=120)
    assert found.error is None
    assert found.measurement is not None
    assert len(found.measurement.ttft_s) == len(found.measurement.step_time_s) == POINT.repetitions
    assert all(0 < seconds < 60 for seconds in found.measurement.ttft_s + found.measurement.step_time_s)
    assert found.measurement.memory_bytes > 10**7
    assert found.measurement.decode == "eager"
    assert "torch" in found.measurement.versions


def test_the_devices_limits_are_measured(tmp_path: Path) -> None:
    found = measure_limits("cpu", "fp32", 1, tmp_path, timeout_s=120)
    assert 1e8 < found["copy_bytes_per_s"] < 1e13
    assert 1e8 < found["matmul_flops_per_s"] < 1e15


def test_the_limits_of_one_dtype_are_not_those_of_another(
    tracked: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(device: str, dtype: str, *_: Any, **__: Any) -> dict[str, float]:
        asked.append(dtype)
        return {"matmul_flops_per_s": 1e12 * len(asked)}

    monkeypatch.setattr(inference, "measure_limits", measure)
    found = []
    for dtype in ("bf16", "fp32", "bf16"):
        spec = SimpleNamespace(dtype=dtype, threads=1)
        here: Any = SimpleNamespace(
            state=tracked, spec=spec, folder=tracked.home, device="cpu", machine="this one", name="limits"
        )
        found.append(inference.limits_of.fn(here)["matmul_flops_per_s"])
    assert asked == ["bf16", "fp32"]
    assert found == [1e12, 2e12, 1e12]


@pytest.mark.parametrize(
    ("batch_size", "said"),
    [
        (3, "crashed: by SIGSEGV"),
        (7, "out of memory: MemoryError: no room"),
        (9, "crashed: ended with exit code 4 and without a result; last log line: said before it went"),
    ],
)
def test_a_death_is_a_reason(tmp_path: Path, batch_size: int, said: str) -> None:
    found = measure_point(replace(POINT, batch_size=batch_size), tmp_path, timeout_s=60, command=SABOTEUR)
    assert found.measurement is None
    assert found.error == said


def test_a_hang_is_ended_at_its_time(tmp_path: Path) -> None:
    start = time.monotonic()
    found = measure_point(replace(POINT, batch_size=5), tmp_path, timeout_s=1, command=SABOTEUR)
    assert found.error == "time limit: killed after 1 s"
    assert time.monotonic() - start < 30


def test_a_model_that_does_not_fit_is_a_reason_and_not_a_traceback(tmp_path: Path) -> None:
    huge = transformer_config(d_model=4096, num_blocks=8, num_heads=32, vocab_size=61)
    point = replace(POINT, model=huge, batch_size=1 << 20, prefill_length=1 << 20)
    found = measure_point(replace(point, model=POINT.model), tmp_path, timeout_s=120)
    assert found.error is not None
    assert "GiB" in found.error or "memory" in found.error


def test_a_worker_that_ends_before_it_is_asked_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe to it is broken then, when it is written to and when it is closed."""
    started = subprocess.Popen

    def ended(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        process = started(*arguments, **options)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    monkeypatch.setattr(subprocess, "Popen", ended)
    found = measure_point(POINT, tmp_path, timeout_s=60, command=(sys.executable, "-c", "exit(3)"))
    assert found.error == "crashed: ended with exit code 3 and without a result"


def test_an_old_answer_is_never_taken_for_a_new_one(tmp_path: Path) -> None:
    assert measure_point(POINT, tmp_path, timeout_s=60, command=SABOTEUR).measurement is not None
    broken = (sys.executable, "-c", "import sys; sys.exit(3)")
    answer, error = ask({"point": asdict(POINT)}, tmp_path, timeout_s=60, command=broken)
    assert answer is None
    assert error is not None
    assert "exit code 3" in error


def test_a_worker_ends_with_its_owner(tmp_path: Path) -> None:
    """The pipe that the owner held closes with it, whatever it died of."""
    line = f'{{"point": {replace(POINT, prefill_length=100_000, batch_size=64).to_json()}}}\n'
    worker = subprocess.Popen(
        [*WORKER, str(tmp_path / "result.json")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert worker.stdin is not None
    worker.stdin.write(line)
    worker.stdin.close()
    assert worker.wait(timeout=60) == 1
    assert not psutil.pid_exists(worker.pid) or not (tmp_path / "result.json").exists()
