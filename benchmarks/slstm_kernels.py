"""The sLSTM kernels beside what else computes the cell, in one run on a GPU.

    python -m benchmarks.slstm_kernels --json result.json --markdown result.md

Contenders: our kernels; the plain loop of PyTorch operations, one step after the other, as the published
package's vanilla version is; the same loop compiled by torch (a graph of CHUNK steps, called again and
again); torch.nn.LSTM (cuDNN), dense, of the same width, in bfloat16 and in float16, for which cuDNN has more
kernels. Each has a process of its own. Inputs are bfloat16, states float32; forward without gradients, and
forward and backward. Errors are against float64.

Rows are printed and the file is written as they come; a run that is cut short leaves what it has.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import about, sentence
from benchmarks.slstm_cases import CONTENDERS, Shape, inputs_of, operator

Row = dict[str, Any]
PATIENCE_S = 75
LAYOUT_TIMES = ("forward_saving_ms", "backward_ms")
TIMES = ("forward_ms", "forward_backward_ms")
GOALS = {"loop": 20.0, "cuDNN LSTM": 0.5, "cuDNN LSTM, float16": 0.5}
SHAPES = (
    Shape(8, 2048, 8, 64), Shape(64, 2048, 8, 64), Shape(8, 2048, 8, 128), Shape(16, 2048, 8, 128),
    Shape(64, 2048, 8, 128), Shape(8, 2048, 4, 256),
)  # fmt: skip
COMPILED = (Shape(8, 2048, 8, 64),)
LOOPED = (Shape(8, 2048, 8, 64), Shape(64, 2048, 8, 128), Shape(8, 2048, 4, 256))
TUNED = (Shape(16, 2048, 8, 64), Shape(16, 2048, 8, 128))
TRIALS: tuple[Row, ...] = (
    *({"config": f"chip-{warps}", "width": width} for width in (64, 128) for warps in (8, 16, 4)),
    {"config": "chip-8", "width": 64, "trains": False},
    {"config": "chip-8", "width": 128, "trains": False},
    {"config": "stream-8", "width": 64},
    {"config": "stream-8", "width": 128},
    {"config": "stream-16", "width": 256},
    {"config": "stream-16", "width": 256, "trains": False},
    {"config": "stream-8", "width": 64, "dtype": "float32", "starts": True},
    {"config": "stream-8", "width": 20, "dtype": "float32"},
    {"config": "chip-8", "width": 64, "dtype": "float16"},
    {"config": "chip-8", "width": 64, "sigmoid": True},
    {"config": "chip-8", "width": 64, "normaliser": False},
    {"config": "chip-8", "width": 64, "normaliser": False, "sigmoid": True, "starts": True},
    {"config": "chip-8", "width": 64, "mixes": False},
    {"config": "chip-8", "width": 48, "starts": True},
)
"""Every way to compile the kernels, each tried once against float64 before anything is timed."""
QUICK = (Shape(2, 64, 2, 16),)


def layouts(device: torch.device, budget_s: float) -> Iterator[Row]:
    """Both kernels by themselves in every layout that is right here, to choose their order by."""
    from kernels.slstm.configs import candidates

    for shape in TUNED:
        tensors = inputs_of(shape, device)
        for config in candidates(torch.bfloat16, shape.width):
            yield {"layout": config.name, **asdict(shape), **_time_layout(config, shape, tensors, budget_s)}


def _time_layout(config: Any, shape: Shape, tensors: dict[str, Tensor], budget_s: float) -> Row:
    from kernels.slstm.check import TOLERANCE, Trial, problem_error
    from kernels.slstm.launch import backward, forward

    x, R, b, dh = (tensors[name] for name in ("x", "R", "b", "dh"))
    trial = Trial(config=config.name, dtype="bfloat16", width=shape.width)
    error = problem_error(trial, x.device, repeats=2)
    if error > TOLERANCE["bfloat16"]:
        return {"error": error}
    zeros = torch.zeros_like(dh[:, 0], dtype=torch.float32)
    h, _, _, saved = forward(x, R, b, None, False, True, True, config)
    calls: dict[str, Callable[[], object]] = {
        "forward_saving_ms": lambda: forward(x, R, b, None, False, True, True, config),
        "backward_ms": lambda: backward(dh, zeros, zeros, R, None, None, h, saved, False, True, config),
    }
    return {"error": error} | {name: time_ms(call, x.device, budget_s)[0] for name, call in calls.items()}


def time_ms(call: Callable[[], object], device: torch.device, budget_s: float) -> tuple[float, int]:
    """Median of 3 to 30 calls, as many as fit, after one; and how many."""
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    call()
    sync()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 3 or (len(times) < 30 and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        sync()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times), len(times)


def errors(device: torch.device, shape: Shape, name: str) -> dict[str, float]:
    """Of h and gradients, relative in the 2-norm, to the float64 operator on the CPU."""
    from kernels.slstm import slstm

    tensors = inputs_of(shape, device)
    exact = {key: tensor.cpu().double() for key, tensor in tensors.items()}
    truth = operator(lambda x, R, b: slstm(x, R, b, backend="reference"), exact, True)()
    got = CONTENDERS[name](tensors, True)()
    return {
        part: float((a.cpu().double() - e).norm() / e.norm())
        for part, a, e in zip(("h", "dx", "dR", "db"), got, truth, strict=True)
    }


def measure(name: str, shape: Shape, device: torch.device, budget_s: float) -> Row:
    """Times of one contender at one shape."""
    tensors = inputs_of(shape, device)
    row: Row = {"contender": name, **asdict(shape)}
    if device.type == "cuda":
        row["device"] = torch.cuda.get_device_name(device)
        torch.cuda.reset_peak_memory_stats()
    for backward, column in ((False, "forward_ms"), (True, "forward_backward_ms")):
        row[column], row[f"{column}_calls"] = time_ms(CONTENDERS[name](tensors, backward), device, budget_s)
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def worker() -> Iterator[Row]:
    """The process of some contenders: it starts at once, and measures when it is told to; its rows, each as
    it is known. What takes long to compile does so before."""
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    request = json.loads(sys.stdin.readline())
    if request["early"]:
        for name in request["contenders"]:
            for shape in request["shapes"]:
                for backward in (False, True):
                    CONTENDERS[name](inputs_of(Shape(**shape), device), backward)()
    sys.stdin.readline()
    if request["contenders"] == ["layouts"]:
        yield from layouts(device, request["budget_s"])
        return
    for name in request["contenders"]:
        for shape in request["errors"]:
            yield {"contender": name, **shape, "errors": errors(device, Shape(**shape), name)}
        for shape in request["shapes"]:
            yield measure(name, Shape(**shape), device, request["budget_s"])


def tried(trial: Row) -> Row:
    """A trial's verdict and how long it took; it is remembered, so that what follows need not try."""
    from kernels import trials
    from kernels.slstm.check import TOLERANCE, Trial

    asked = Trial(**{"dtype": "bfloat16", **trial})
    start = time.perf_counter()
    error = trials.verdict(asked, torch.device("cuda", 0), "kernels.slstm.check", TOLERANCE[asked.dtype])
    return {"trial": asdict(asked), "error": error, "seconds": round(time.perf_counter() - start, 1)}


def requests(quick: bool, budget_s: float) -> list[Row]:
    """A process each, in the order in which they are measured."""
    checked = (Shape(4, 32, 2, 16),) if quick else (Shape(8, 256, 8, 64), Shape(8, 256, 8, 128))
    plan: list[tuple[list[str], tuple[Shape, ...], tuple[Shape, ...]]] = [
        (["ours"], SHAPES, checked),
        (["cuDNN LSTM", "cuDNN LSTM, float16", "input projection"], SHAPES, ()),
        (["loop"], LOOPED, checked[:1]),
        (["layouts"], (), ()),
        (["compiled loop"], COMPILED, ()),
    ]
    return [
        {
            "contenders": names,
            "shapes": [asdict(shape) for shape in (QUICK if quick else shapes)],
            "errors": [asdict(shape) for shape in errors],
            "budget_s": budget_s,
            "early": names == ["compiled loop"],
        }
        for names, shapes, errors in plan
        if not (quick and names == ["layouts"])
    ]


def start(request: Row) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.slstm_kernels", "--worker"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return process


def collect(process: subprocess.Popen[str], name: str, keep: Callable[[Row], None]) -> None:
    """Let a process measure; its rows, or what became of it."""
    try:
        out, err = process.communicate("go\n", timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += f"\nstopped after {PATIENCE_S} s"
    for line in out.splitlines():
        if line.startswith("{"):
            keep(json.loads(line))
    if process.returncode != 0:
        keep({"contender": name, "failed": err.strip()[-600:]})


def page(found: Row, rows: list[Row]) -> str:
    """All of it as Markdown."""
    return "\n".join(["# The sLSTM kernels", "", sentence(found), "", *targets(rows), "", table(rows)])


def targets(rows: list[Row]) -> list[str]:
    """What was asked for, for heads up to 128: our speed in those of the others, at all shapes."""
    times = {
        (row["contender"], *_key(row)): row for row in rows if "forward_ms" in row and row["width"] <= 128
    }
    lines = ["| target | measured | met |", "|---|---|---|"]
    for other, goal in GOALS.items():
        ratios = [
            row[column] / times["ours", *key[1:]][column]
            for key, row in times.items()
            if key[0] == other and ("ours", *key[1:]) in times
            for column in TIMES
        ]
        if ratios:
            met = "yes" if min(ratios) >= goal else "**no**"
            measured = f"{min(ratios):.2g} to {max(ratios):.3g}"
            lines.append(f"| at least {goal:g} times as fast as {other} | {measured} | {met} |")
    return lines


def table(rows: list[Row]) -> str:
    """Times by shape, and how many times as fast as the loop; then the errors."""
    times = [row for row in rows if "forward_ms" in row]
    loops = {_key(row): row for row in times if row["contender"] == "loop"}
    lines = [
        "| batch | S | heads | width | contender | forward ms | forward + backward ms |"
        " times the loop's speed | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(times, key=lambda row: (*_key(row)[2:], *_key(row)[:2])):
        slow = loops.get(_key(row))
        compared = row["contender"] not in ("loop", "input projection")
        faster = " / ".join(f"{slow[c] / row[c]:.1f}" for c in TIMES) if slow and compared else ""
        peak = f"{row['peak_gib']:.2f}" if "peak_gib" in row else ""
        lines.append(
            f"| {row['batch']} | {row['length']} | {row['heads']} | {row['width']} | {row['contender']} |"
            f" {row['forward_ms']:.2f} | {row['forward_backward_ms']:.2f} | {faster} | {peak} |"
        )
    lines += ["", "| contender | batch | S | heads | width | h | dx | dR | db |", "|---|" + "---|" * 8]
    for row in rows:
        if "errors" in row:
            found = " | ".join(f"{row['errors'][part]:.1e}" for part in ("h", "dx", "dR", "db"))
            place = " | ".join(str(row[key]) for key in ("batch", "length", "heads", "width"))
            lines.append(f"| {row['contender']} | {place} | {found} |")
    tries = [row for row in rows if "trial" in row]
    if tries:
        lines += ["", "| trial | error |", "|---|---|"]
    for row in tries:
        lines.append(f"| {', '.join(f'{k} {v}' for k, v in row['trial'].items())} | {row['error']:.1e} |")
    tuned = [row for row in rows if "layout" in row]
    if tuned:
        lines += [
            "",
            "| layout | batch | width | forward, saving, ms | backward ms |",
            "|---|---|---|---|---|",
        ]
    for row in tuned:
        spans = (f"{row[c]:.2f}" if c in row else "wrong" for c in LAYOUT_TIMES)
        lines.append(f"| {row['layout']} | {row['batch']} | {row['width']} | {' | '.join(spans)} |")
    lines += ["", *(f"{row['contender']}: {row['failed']}" for row in rows if "failed" in row)]
    return "\n".join(lines)


def _key(row: Row) -> tuple[int, int, int, int]:
    return row["batch"], row["length"], row["heads"], row["width"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, for a machine without a GPU")
    parser.add_argument("--only", nargs="*", help="contenders, by name")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds of calls for each time")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        for row in worker():
            print(json.dumps(row), flush=True)
        return
    rows: list[Row] = []
    found = about("torch", "triton")

    def keep(row: Row) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        result = json.dumps({**found, "rows": rows}, indent=1)
        for path, text in ((options.json, result), (options.markdown, page(found, rows))):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text + "\n")

    asked = [
        request
        for request in requests(options.quick, options.budget)
        if not options.only or set(options.only) & set(request["contenders"])
    ]
    processes = [start(request) for request in asked]
    try:
        if torch.cuda.is_available():
            with ThreadPoolExecutor(len(TRIALS)) as pool:
                for row in pool.map(tried, TRIALS):
                    keep(row)
        for request, process in zip(asked, processes, strict=True):
            collect(process, " and ".join(request["contenders"]), keep)
    finally:
        for process in processes:
            process.kill()
    print(page(found, rows))


if __name__ == "__main__":
    main()
