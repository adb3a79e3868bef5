"""What a sweep's GPUs are handed out to, looked up in its ledger while it trains.

Of every moment: the part of the GPUs that runs have, and why the rest is free. `kept`: the runs that wait
need more than is free, or a run that waits for several GPUs has it promised. `missed`: a run could start
there. `nobody`: none is left to wait. A run has its room from before its process starts until that has gone.
Whether one that has not asked yet would fit where others wait is not known: that is `kept`.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # on a bare machine it is not there before the wheels are
    from tasks.devices import Machine
    from tasks.leases import Ledger
    from tasks.placement import Entry

LOOK_S = 0.1
PARTS = ("used", "kept", "missed", "nobody")


def parts(entries: "Sequence[Entry]", machine: "Machine", now: int, *, more: bool) -> dict[str, float]:
    """The GPUs of this moment, 1 in all. `more`: some of the sweep's runs have not asked yet."""
    from tasks.placement import starts

    granted = [entry for entry in entries if entry.granted]
    used = sum(entry.need.gpu_share * len(entry.gpus) for entry in granted) / len(machine.gpus)
    if starts(entries, machine, now):
        why = "missed"
    elif len(granted) < len(entries):
        why = "kept"
    else:
        why = "missed" if more else "nobody"
    return {"used": used, why: 1 - used}


@contextmanager
def watched(ledger: "Ledger", more: Callable[[], bool], to: Path) -> Iterator[None]:
    """Write the parts' shares of all GPUs' time to a file, from the first grant to the last run's end.

    `more` says whether some runs have not been begun.
    """
    seconds: Counter[str] = Counter()
    over = threading.Event()

    def look() -> None:
        before: float | None = None
        while not over.wait(LOOK_S):
            entries = ledger.held()
            now = time.monotonic()
            if before is not None and (entries or more()):
                found = parts(entries, ledger.machine, time.time_ns(), more=more())
                seconds.update({part: share * (now - before) for part, share in found.items()})
            if before is not None or any(entry.granted for entry in entries):
                before = now

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(look)
        try:
            yield
        finally:
            over.set()
        looking.result()
    total = seconds.total()
    shares = {part: seconds[part] / total for part in PARTS} if total else {}
    to.write_text(json.dumps(shares), encoding="utf-8")
