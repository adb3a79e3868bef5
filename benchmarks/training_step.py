"""A training step of whole models, ours beside the peers: speed, share of the device's peak, memory.

    python -m benchmarks.training_step --json rows.json [--wheels FOLDER] [--profile] [--time-limit 500]
    python -m benchmarks.training_step --quick        # on a CPU, that it works

Every case runs in a process of its own, so that a crash or a lack of memory is a row. All compile at the
same time, as far as the GPU's memory goes; then one is measured after the other while the rest sleep. bf16
autocast, float32 weights, fused AdamW, gradient clipping. A row is written to the file when it is there. MFU:
FLOPs by our accounting (docs/accounting.md) over the matrix peak measured at the start.

`--wheels`: a folder of wheels of the peers (xlstm, mlstm_kernels and theirs), unpacked for them alone.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import about, sentence
from benchmarks.training_cases import Case, ours, peers, quick
from xlstm.training.peak import matrix_peak

Row = dict[str, Any]
WORKER = Path(__file__).with_name("training_worker.py")
COMPILE_SHARE = 0.55
"""Of the time; who has not compiled by then is not measured."""
RESERVE_GIB = 4.0
"""Contexts of the sleeping processes, and what fragments."""


class Worker:
    """A process for a case; gone after an error that it did not survive."""

    def __init__(self, case: Case, environment: dict[str, str], logs: Path) -> None:
        self.case = case
        self.log = logs / f"{case.name.replace(' ', '-').replace('/', '-')}.log"
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), json.dumps(case.to_dict())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
            cwd=logs, env=environment,
        )  # fmt: skip

    def ask(self, request: Row, timeout_s: float) -> Row:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if timeout_s <= 0:
            return {"error": "not run: time limit"}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answered = bool(select.select([self.process.stdout], [], [], timeout_s)[0])
        except BrokenPipeError:
            answered = True  # by its end
        if not answered:
            self.end()
            return {"error": f"not finished within {timeout_s:.0f} s"}
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return {"error": f"the process ended with code {code}: {lines[-1][:160] if lines else ''}"}
        return dict(json.loads(line))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Memory:
    """Hands out the GPU's memory among those that compile."""

    def __init__(self, gib: float) -> None:
        self.free = gib
        self.changed = threading.Condition()

    def take(self, gib: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.free >= gib)
            self.free -= gib

    def give(self, gib: float) -> None:
        with self.changed:
            self.free += gib
            self.changed.notify_all()


def unpacked(wheels: Path | None, target: Path) -> list[str]:
    if wheels is None:
        return []
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [str(target)]


def run(options: argparse.Namespace) -> list[Row]:
    on_gpu = torch.cuda.is_available()
    cases = quick() if options.quick else [*(ours() if on_gpu else []), *(peers() if options.peers else [])]
    cases = [case for case in cases if not options.only or any(word in case.name for word in options.only)]
    begun = time.monotonic()

    def left() -> float:
        return float(options.time_limit) - (time.monotonic() - begun)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = unpacked(options.wheels, folder / "wheels")
        environment = dict(os.environ, OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="4")
        if paths:
            environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
        peak = matrix_peak(torch.device("cuda"), None) if on_gpu else None
        if on_gpu:
            torch.cuda.empty_cache()
        found = {**about("torch", "triton"), "matrix_peak_flops": peak}
        total = torch.cuda.get_device_properties(0).total_memory / 2**30 if on_gpu else 0.0
        memory = Memory(total - RESERVE_GIB)
        speed = f"Matrix peak {peak / 1e12:.0f} TFLOP/s" if peak else "No matrix peak"
        print(f"{sentence(found)} {speed}.")
        print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        workers = [Worker(case, environment, folder) for case in cases]

        def prepare(worker: Worker) -> Row:
            gib = worker.case.memory_gib
            if gib is None:
                return {}
            memory.take(gib)
            try:
                return worker.ask({"kind": "compile"}, left() - (1 - COMPILE_SHARE) * options.time_limit)
            finally:
                memory.give(gib)

        with ThreadPoolExecutor(max(1, len(workers))) as pool:
            prepared = list(pool.map(prepare, workers))
        print(f"<!-- compiled after {time.monotonic() - begun:.0f} s -->", flush=True)
        for worker, ready in zip(workers, prepared, strict=True):
            request = {"kind": "measure", "steps": options.steps, "profile": options.profile}
            row = ready if "error" in ready else {**ready, **worker.ask(request, left())}
            worker.end()
            row = {"case": worker.case.name, **worker.case.to_dict(), **row}
            if peak and "flops_per_step" in row and "ms_per_step" in row:
                row["mfu"] = row["flops_per_step"] / (row["ms_per_step"] / 1e3) / peak
            rows.append(row)
            print(line(row), flush=True)
            if options.json:
                write(options.json, {"about": found, "rows": rows})
    if options.profile:
        for row in rows:
            print_profile(row)
    return rows


COLUMNS = ("contender", "size", "N", "S", "tokens a step", "ms a step", "tokens/s", "MFU", "GiB held", "loss")


def line(row: Row) -> str:
    head = [
        row["case"].split(" S=")[0],
        row["size"],
        f"{row.get('N', 0) / 1e6:.1f}M",
        str(row["context_length"]),
    ]
    head[0] = (
        row["contender"]
        + "".join(f", {k}={v}" for k, v in row["options"])
        + (f", {row['heads']} heads" if row["heads"] else "")
    )
    if "tokens_per_s" not in row:
        return (
            f"| {' | '.join(head)} | {row['sequences'] * row['context_length']} | {row.get('error', '?')} |"
        )
    cells = [
        str(row["sequences"] * row["context_length"]),
        f"{row['ms_per_step']:.1f}",
        f"{row['tokens_per_s']:,.0f}",
        f"{100 * row['mfu']:.1f} %" if "mfu" in row else "",
        f"{row['reserved_gib']:.1f}" if row["reserved_gib"] is not None else "",
        f"{row['loss']:.3f}",
    ]
    return f"| {' | '.join([*head, *cells])} |"


def print_profile(row: Row) -> None:
    if "kernels" not in row:
        return
    total = sum(ms for _, ms, _ in row["kernels"])
    print(f"\n{row['case']}: kernels of a step, {total:.1f} ms\n\n| kernel | ms | calls |\n|---|---|---|")
    for name, ms, calls in row["kernels"]:
        print(f"| {name.replace('|', '/')} | {ms:.2f} | {calls} |")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1))
    new.replace(path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--wheels", type=Path, help="of the peers")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", nargs="+", help="cases whose name has one of these words")
    parser.add_argument("--steps", type=int, default=12, help="timed ones; four come before")
    parser.add_argument("--profile", action="store_true", help="the kernels of one more step, by their time")
    parser.add_argument("--time-limit", type=float, default=500.0, help="seconds")
    parser.add_argument("--quick", action="store_true", help="tiny models on a CPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not options.quick and not torch.cuda.is_available():
        print("training_step: no GPU here; --quick runs on a CPU", file=sys.stderr)
        return 2
    rows = run(options)
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
