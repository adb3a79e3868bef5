"""Blocks of the sequence kernels: which are right on this GPU, and how long each kernel takes with them.

    python -m benchmarks.mlstm_tune --json blocks.json --kernels outputs gradients --shapes 16h-128/256-S8192

Each candidate differs from the first configuration of `kernels.mlstm.sequence_configs` in one kernel. It is
first tried on a random problem in a process of its own, several at a time: compilation is most of the work.
Then the kernel is timed alone, in one more process, with the candidates that were right. What is found here
is entered in the table by hand; nothing is chosen by it. The file is written after every row.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import mlstm_cases as cases
from benchmarks.mlstm_measure import describe, time_calls
from kernels.mlstm.sequence_configs import HALF, ChunkBlocks, SequenceConfig, WalkBlocks

Row = dict[str, Any]
KERNELS = ("gradients", "outputs", "state_gradients", "states")
"""Those that take most time first."""
WALKS = (
    ((128, 64), 64, 3),
    ((64, 64), 64, 3),
    ((64, 128), 64, 3),
    ((128, 64), 64, 2),
    ((128, 64), 128, 2),
    ((32, 32), 64, 3),
)
"""tile, tokens, stages"""
CHUNKS = ((64, 128, 64, 3), (64, 128, 64, 2), (64, 64, 64, 3), (64, 256, 64, 2), (64, 128, 128, 1))
"""rows, columns, reduce, stages"""
TRY_S = 150.0
RIGHT = 2e-2
"""Relative error of a candidate that may be timed."""


def candidates(kernel: str) -> Iterator[WalkBlocks | ChunkBlocks]:
    if kernel in ("states", "state_gradients"):
        for tile, tokens, stages in WALKS:
            yield WalkBlocks(tile=tile, tokens=tokens, stages=stages)
    else:
        for rows, columns, reduce, stages in CHUNKS:
            yield ChunkBlocks(rows=rows, columns=columns, reduce=reduce, stages=stages)


def with_blocks(kernel: str, blocks: Row) -> SequenceConfig:
    """The first configuration, with other blocks for one kernel."""
    chosen: WalkBlocks | ChunkBlocks
    if kernel in ("states", "state_gradients"):
        chosen = WalkBlocks(**blocks | {"tile": tuple(blocks["tile"])})
    else:
        chosen = ChunkBlocks(**blocks)
    config = replace(HALF[0], name=f"{kernel} {label(blocks)}", **{kernel: chosen})  # type: ignore[arg-type]
    return replace(config, described=(config.outputs, config.gradients))


def label(blocks: Row) -> str:
    numbers = [*blocks["tile"], blocks["tokens"]] if "tile" in blocks else [*list(blocks.values())[:3]]
    return "x".join(map(str, numbers)) + f", {blocks['stages']} stages"


def try_blocks(request: Row) -> Row:
    """In this process: the error on a random problem."""
    from kernels.mlstm.sequence_check import Trial, problem_error

    config = with_blocks(request["kernel"], request["blocks"])
    K, V = request["widths"]
    trial = Trial(
        config=config.name, dtype="bfloat16", width=K, value_width=V, described=request["described"]
    )
    with torch.no_grad():
        return {"error": problem_error(trial, torch.device("cuda"), config=config)}


def time_kernels(request: Row) -> Iterator[Row]:
    """In this process: milliseconds of one kernel at one shape, for every one of the given blocks."""
    from kernels.mlstm import sequence_launch as launch
    from kernels.mlstm.sequence_shapes import Options

    kernel, device = request["kernel"], torch.device("cuda")
    shape = next(s for s in cases.SHAPES if s.name == request["shape"])
    q, k, v, i, f, dh = cases.random_inputs(shape, device, torch.bfloat16)
    options = Options(eps=1e-6, gate_soft_cap=None, sigmoid=False)
    for blocks in request["all_blocks"]:
        try:
            config = with_blocks(kernel, blocks)
            described = request["described"]
            problem = launch.Problem.of(q, k, v, i, f, None, options, config, described)
            h, _, saved = launch.forward(
                q, k, v, i, f, None, None, False, options, config, described=described
            )
            states = launch.launch_state_gradients(problem, saved, dh, h, None, False)
            calls = {
                "states": lambda p=problem, s=saved: launch.launch_states(p, s, None, False),
                "outputs": lambda p=problem, s=saved: launch.launch_outputs(p, s),
                "state_gradients": lambda p=problem, s=saved, h=h: launch.launch_state_gradients(
                    p, s, dh, h, None, False
                ),
                "gradients": lambda p=problem, s=saved, g=states: launch.launch_gradients(p, s, g, dh),
            }
            call = calls[kernel]
            yield {"blocks": blocks, "ms": time_calls(lambda mark, call=call: call(), device, 0.1)[0]}  # type: ignore[misc]
        except Exception as error:
            yield {"blocks": blocks, "problem": describe(error)}


def child(mode: str, request: Row, timeout_s: float) -> tuple[list[Row], str]:
    """Rows that a process of its own has printed, and why it ended, if not well."""
    command = [sys.executable, "-m", "benchmarks.mlstm_tune", f"--{mode}", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        out, why = done.stdout, ""
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            why = f"ends with code {done.returncode}: {last[:160]}"
    except subprocess.TimeoutExpired as late:
        raw: str | bytes = late.stdout or ""
        out = raw.decode() if isinstance(raw, bytes) else raw
        why = f"no end in {timeout_s:.0f} s"
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], why


def try_all(
    kernel: str, widths: tuple[int, int], described: bool, left: Callable[[], float]
) -> Iterator[tuple[Row, tuple[list[Row], str]]]:
    """Every candidate for one kernel, several processes at a time."""
    requests = [
        {"kernel": kernel, "widths": widths, "described": described, "blocks": asdict(blocks)}
        for blocks in candidates(kernel)
    ]
    with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
        answers = pool.map(lambda request: child("try", request, max(1.0, min(TRY_S, left()))), requests)
        yield from zip(requests, answers, strict=True)


def run(
    kernels: list[str], shapes: list[str], path: Path | None, time_limit: float, described: bool = False
) -> list[Row]:
    started, rows = time.monotonic(), list[Row]()

    def left() -> float:
        return time_limit - (time.monotonic() - started)

    def keep(row: Row) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows, indent=1))

    for shape in (s for s in cases.SHAPES if any(part in s.name for part in shapes)):
        for kernel in kernels:
            right = []
            for request, (found, why) in try_all(kernel, (shape.width, shape.value_width), described, left):
                row: Row = found[0] if found else {"problem": why}
                keep({"kind": "try", **request, **row})
                if row.get("error", RIGHT) < RIGHT:
                    right.append(request["blocks"])
            request = {
                "kernel": kernel, "shape": shape.name, "described": described, "all_blocks": right
            }  # fmt: skip
            found, why = [], "no time or none right"
            if right and left() > 5:
                found, why = child("time", request, left())
            for row in found:
                keep({"kind": "time", "kernel": kernel, "shape": shape.name, **row})
            if why:
                keep({"kind": "time", "kernel": kernel, "shape": shape.name, "problem": why})
    return rows


def markdown(rows: list[Row]) -> str:
    lines = ["| kernel | shape or widths | blocks | error | ms |  |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        where = row.get("shape") or "/".join(map(str, row["widths"]))
        blocks = label(row["blocks"]) if "blocks" in row else ""
        error = f"{row['error']:.1e}" if "error" in row else ""
        ms = f"{row['ms']:.3f}" if "ms" in row else ""
        lines.append(f"| {row['kernel']} | {where} | {blocks} | {error} | {ms} | {row.get('problem', '')} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all rows here")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--shapes", nargs="+", default=["16h-128/256-S8192"], help="parts of names of shapes")
    parser.add_argument(
        "--described", action="store_true", help="through descriptors, as large problems are read"
    )
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds")
    parser.add_argument("--try", dest="trial", help=argparse.SUPPRESS)
    parser.add_argument("--time", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("mlstm_tune: no GPU here", file=sys.stderr)
        return 2
    if options.trial:
        print(json.dumps(try_blocks(json.loads(options.trial))), flush=True)
    elif options.time:
        for row in time_kernels(json.loads(options.time)):
            print(json.dumps(row), flush=True)
    else:
        print(
            markdown(
                run(options.kernels, options.shapes, options.json, options.time_limit, options.described)
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
