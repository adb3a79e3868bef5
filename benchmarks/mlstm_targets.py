"""The targets of this project's kernels, and what a run says about each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.mlstm_cases import ACCURACY, ACCURACY_LONG, CONTENDERS
from benchmarks.mlstm_decode import DECODE, step_bytes

Row = dict[str, Any]

LIMITS = {
    "16h-128/256-S2048": (1.2, 4.5),
    "16h-128/256-S8192": (1.2, 4.5),
    "8h-256/512-S8192": (2.0, 7.5),
    "4h-64/128-S8192": (0.25, 1.0),
}
"""Milliseconds forward, and forward with backward."""
SPEEDUP = 2.4
"""Over the fastest correct peer."""
CORRECT = 0.05
"""Largest relative error, at S = 1024, of a peer that counts as correct."""
MEMORY_SHAPE = "16h-128/256-S8192"


@dataclass(frozen=True)
class Verdict:
    target: str
    goal: str
    measured: str
    met: bool


def targets(rows: list[Row], bandwidth: float | None) -> list[Verdict]:
    """Those that the rows can decide."""
    run = _Run(rows)
    checks = (_times(run), _speedups(run), _against_attention(run), _long(run), _memory(run), _accuracy(run))
    verdicts = [verdict for check in checks for verdict in check]
    return verdicts + list(_decode(run, bandwidth))


class _Run:
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.speed = {(r["contender"], r["shape"]["name"]): r for r in rows if r["kind"] == "speed"}
        self.errors = {(r["contender"], r["shape"]["name"]): r for r in rows if r["kind"] == "errors"}

    def value(self, contender: str, shape: str, key: str) -> float | None:
        return self.speed.get((contender, shape), {}).get(key)

    def worst_error(self, contender: str, shape: str) -> float | None:
        """A nan is the worst."""
        found = self.errors.get((contender, shape), {}).get("errors", {}).values()
        return max((float("inf") if x != x else x for x in found), default=None)

    def correct_peers(self) -> list[str]:
        peers = [c.name for c in CONTENDERS.values() if c.peer and c.cell != "other"]
        return [
            p for p in peers if (error := self.worst_error(p, ACCURACY.name)) is not None and error < CORRECT
        ]

    def best_peer(self, shape: str, key: str) -> tuple[float, str] | None:
        found = [(value, peer) for peer in self.correct_peers() if (value := self.value(peer, shape, key))]
        return min(found, default=None)


def _times(run: _Run) -> Iterator[Verdict]:
    for shape, limits in LIMITS.items():
        for name, how in (("ours", ""), ("ours-recorded", ", in a CUDA graph")):
            for key, limit in zip(("ms_forward", "ms_forward_backward"), limits, strict=True):
                if (value := run.value(name, shape, key)) is not None:
                    what, goal = f"{_words(key)}, {shape}{how}", f"at most {limit} ms"
                    yield Verdict(what, goal, f"{value:.3f} ms", value <= limit)


def _speedups(run: _Run) -> Iterator[Verdict]:
    for shape in LIMITS:
        for key in ("ms_forward", "ms_forward_backward"):
            value, best = run.value("ours", shape, key), run.best_peer(shape, key)
            if value and best:
                ratio = best[0] / value
                measured = f"{ratio:.2f}x ({best[1]}: {best[0]:.3f} ms)"
                goal = f"{SPEEDUP}x the fastest correct mLSTM peer"
                yield Verdict(f"{_words(key)}, {shape}", goal, measured, ratio >= SPEEDUP)


def _against_attention(run: _Run) -> Iterator[Verdict]:
    for shape in LIMITS:
        for key in ("ms_forward", "ms_forward_backward"):
            value, other = run.value("ours", shape, key), run.value("cudnn", shape, key)
            if value and other:
                measured = f"{other / value:.2f}x"
                yield Verdict(f"{_words(key)}, {shape}", "ahead of cuDNN attention", measured, value < other)


def _long(run: _Run) -> Iterator[Verdict]:
    for key in ("ms_forward", "ms_forward_backward"):
        short, long = (run.value("ours", f"16h-128/256-S{S}", key) for S in (8192, 65536))
        if short and long:
            goal = "at most 1.3x of S = 8192"
            yield Verdict(
                f"{_words(key)}, S = 65536, B = 1", goal, f"{long / short:.2f}x", long <= 1.3 * short
            )


def _memory(run: _Run) -> Iterator[Verdict]:
    ours, best = run.value("ours", MEMORY_SHAPE, "peak_bytes"), run.best_peer(MEMORY_SHAPE, "peak_bytes")
    if ours and best:
        goal = f"at most that of {best[1]}: {best[0] / 1e9:.2f} GB"
        yield Verdict(f"peak memory, {MEMORY_SHAPE}", goal, f"{ours / 1e9:.2f} GB", ours <= best[0])


def _accuracy(run: _Run) -> Iterator[Verdict]:
    for name, shape, limit in (
        ("ours-fp32", ACCURACY, 1e-5),
        ("ours-fp32", ACCURACY_LONG, 1e-5),
        ("ours", ACCURACY, 1e-2),
        ("ours", ACCURACY_LONG, 1e-2),
    ):
        if (error := run.worst_error(name, shape.name)) is not None:
            what = f"worst output, {str(CONTENDERS[name].dtype).removeprefix('torch.')}, S = {shape.length}"
            yield Verdict(what, f"relative error at most {limit:.0e}", f"{error:.1e}", error <= limit)


def _decode(run: _Run, bandwidth: float | None) -> Iterator[Verdict]:
    for row in run.rows:
        if row["kind"] != "decode" or row["contender"] not in ("step", "step-bf16") or "us" not in row:
            continue
        dtype, us = DECODE[row["contender"]].state_dtype, row["us"]
        what = f"decode step, B = {row['batch']}, {str(dtype).removeprefix('torch.')} state"
        if row["batch"] >= 8 and bandwidth is not None:
            share = step_bytes(row["batch"], dtype) / (us * 1e-6) / bandwidth
            yield Verdict(what, "at least 90% of copy bandwidth", f"{share:.0%} ({us:.1f} us)", share >= 0.9)
        elif row["batch"] == 1 and dtype == torch.float32:
            yield Verdict(what, "at most 5 us", f"{us:.2f} us", us <= 5.0)


def _words(key: str) -> str:
    return {"ms_forward": "forward", "ms_forward_backward": "forward + backward"}[key]
