"""Each point of an inference benchmark in a process of its own: a crash, a full memory or a hang is a row."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.child import End, Limits, explain, last_line, oom_kills
from tasks.zygote import SINGLE_THREADED
from xlstm.timing.points import Measurement, Point
from xlstm.training.failures import Failure, describe

WORKER = (sys.executable, "-m", "xlstm.timing.worker")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A measurement, or why there is none."""

    measurement: Measurement | None = None
    error: str | None = None
    wall_time_s: float = 0.0


def measure_point(
    point: Point, folder: Path, *, timeout_s: float, command: Sequence[str] | None = None
) -> Outcome:
    """Measure a point in a new process, which leaves its log and its answer in `folder`."""
    start = time.monotonic()
    answer, error = ask({"point": asdict(point)}, folder, timeout_s=timeout_s, command=command)
    spent = time.monotonic() - start
    if answer is None:
        return Outcome(error=error, wall_time_s=spent)
    return Outcome(measurement=Measurement.from_json(json.dumps(answer)), wall_time_s=spent)


def measure_limits(
    device: str, dtype: str, threads: int, folder: Path, *, timeout_s: float
) -> dict[str, float]:
    """What the device does at best; empty where even that fails."""
    asked = {"limits": {"device": device, "dtype": dtype, "threads": threads}}
    answer, _ = ask(asked, folder, timeout_s=timeout_s)
    return answer or {}


def ask(
    request: Mapping[str, Any], folder: Path, *, timeout_s: float, command: Sequence[str] | None = None
) -> tuple[dict[str, Any] | None, str | None]:
    """The worker's answer, or None and why there is none, one line."""
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    kills = oom_kills()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*(command or WORKER), str(result)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **SINGLE_THREADED},
        )
        assert process.stdin is not None
        with process:
            cause = _wait(process, json.dumps(request), timeout_s)
    if cause is None and result.exists():
        answer = json.loads(result.read_text(encoding="utf-8"))
        if "failure" not in answer:
            return answer, None
        return None, describe(Failure(answer["failure"]), answer["reason"])
    end = End(code=process.returncode, cause=cause, kernel_ran_out=oom_kills() > kills)
    failure, reason = explain(end, Limits(timeout_s=timeout_s), last_line(log, 0))
    return None, describe(failure, reason)


def _wait(process: "subprocess.Popen[bytes]", request: str, timeout_s: float) -> Failure | None:
    """Until the process ends; TIME_LIMIT where it had to be ended. Whatever happens here, it ends."""
    assert process.stdin is not None
    try:
        process.stdin.write(f"{request}\n".encode())
        process.stdin.flush()  # and left open: its end is the sign that we are gone
        process.wait(timeout_s)
    except BrokenPipeError:
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()  # which tries once more to write; whoever closes it again has nothing to
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return Failure.TIME_LIMIT
    finally:
        if process.poll() is None:
            process.kill()
    return None
