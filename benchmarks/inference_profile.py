"""Where the time of a prefill or a decode step goes: the device's work by kernel, and how long it had none.

What a profiler says of single kernels, and what an unobserved run took, stand side by side: their difference
is gaps. Kernels that overlap (programmatic dependent launch) add up to more than the time in which any ran.
"""

import cProfile
import pstats
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

from xlstm.timing.measure import seconds

TOP = 16
HOST_BOUND = 1.1
"""Times longer than its kernels run is a run whose functions on the host are of interest."""
NAME = 90
"""Letters of a kernel's name: templates go on for hundreds."""


class Work(NamedTuple):
    """One kernel's run, in microseconds; on a CPU one operator's, what it calls included."""

    name: str
    start: float
    end: float


def profiled(run: Callable[[], Any], device: torch.device, repeats: int = 1) -> dict[str, Any]:
    """Of one `run`, warm: its wall time unobserved (the fastest of three), and its kernels.

    `repeats` says how many steps a run makes: all numbers are of one.
    """
    wall = min(seconds(run, device) for _ in range(3))
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        seconds(run, device)
    host = cProfile.Profile()
    host.runcall(run)
    on_device = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    work = [
        Work(event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == on_device and event.cpu_parent is None
    ]
    return {**summary(work, wall, repeats), "host": functions(host)}


def functions(profile: cProfile.Profile) -> list[dict[str, Any]]:
    """Python's functions by their own time, which the profiler makes longer: to compare, not to add up."""
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    ranked = sorted(found.items(), key=lambda item: -item[1][2])[:TOP]
    return [
        {"name": f"{Path(file).name}:{line} {name}", "ms": 1e3 * own, "calls": calls}
        for (file, line, name), (_, calls, own, _, _) in ranked
    ]


def summary(work: Iterable[Work], wall_s: float, repeats: int) -> dict[str, Any]:
    """Milliseconds of one of `repeats`: unobserved, first kernel to last, with any running, and added up."""
    work = sorted(work, key=lambda one: one.start)
    busy, reached = 0.0, float("-inf")
    by_name: dict[str, list[float]] = {}
    for name, start, end in work:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
        by_name.setdefault(name, []).append(end - start)
    each = 1e3 * repeats
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return {
        "wall_ms": 1e3 * wall_s / repeats,
        "span_ms": (reached - work[0].start) / each if work else 0.0,
        "busy_ms": busy / each,
        "sum_ms": sum(end - start for _, start, end in work) / each,
        "kernels": len(work) / repeats,
        "top": [
            {"name": name[:NAME], "ms": sum(times) / each, "calls": len(times) / repeats, "us": min(times)}
            for name, times in ranked[:TOP]
        ],
    }


def profile_table(row: dict[str, Any]) -> str:
    """One profile in Markdown."""
    head = (
        f"### {row['engine']} {row['arch']} {row['model']}, prefill {row['prefill_length']:,}, batch"
        f" {row['batch_size']}: {row['what']}"
    )
    lines = [
        head,
        "",
        f"{row['wall_ms']:.3f} ms unobserved; observed {row['span_ms']:.3f} ms, with a kernel running"
        f" {row['busy_ms']:.3f} ms, kernels added up {row['sum_ms']:.3f} ms; {row['kernels']:.0f} kernels",
        "",
        "| kernel | ms | calls | shortest (us) |",
        "| --- | --- | --- | --- |",
    ]
    for kernel in row["top"]:
        name = kernel["name"].replace("|", "/")
        lines.append(f"| {name} | {kernel['ms']:.3f} | {kernel['calls']:.0f} | {kernel['us']:.1f} |")
    if row["wall_ms"] > HOST_BOUND * row["busy_ms"]:
        lines += ["", "| the host was slower: function | ms | calls |", "| --- | --- | --- |"]
        for one in row["host"]:
            lines.append(f"| {one['name'].replace('|', '/')} | {one['ms']:.2f} | {one['calls']} |")
    return "\n".join(lines) + "\n"
