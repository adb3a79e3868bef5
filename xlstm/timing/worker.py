"""A process that measures one point and ends: what a crash or a full memory takes along is that point.

    python -m xlstm.timing.worker RESULT < request

The request is JSON, {"point": ...} or {"limits": {"device", "dtype", "threads"}}, one line on standard input.
The input stays open while the owner lives: at its end the process ends too, whatever it was at. RESULT is a
file that then holds a measurement, the limits, or {"failure", "reason"}.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import IO, Any

from xlstm.timing.points import Point
from xlstm.training.failures import classify

OOM_SCORE = "800"
"""Where memory runs out, the kernel is to end this process and not its owner."""


def main(result: Path, request: IO[str]) -> None:
    """Answer one request."""
    asked: dict[str, Any] = json.loads(request.readline())
    threading.Thread(target=_end_with_owner, args=(request,), daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    try:
        answer = _answer(asked)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        answer = json.dumps({"failure": classify(error), "reason": reason[:500]})
    temporary = result.with_suffix(".part")
    temporary.write_text(answer, encoding="utf-8")
    temporary.replace(result)


def _answer(asked: dict[str, Any]) -> str:
    from xlstm.timing.engines import build_engine
    from xlstm.timing.measure import DTYPES, device_limits, measure

    if "limits" in asked:
        import torch

        limits = asked["limits"]
        found = device_limits(torch.device(limits["device"]), DTYPES[limits["dtype"]], limits["threads"])
        return json.dumps(found)
    return measure(Point.from_json(json.dumps(asked["point"])), build_engine).to_json()


def _end_with_owner(request: IO[str]) -> None:
    while request.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for the owner cannot be joined
