"""mLSTM kernels side by side, in one run: ours, the PyTorch reference, and the peers that can be imported.

    python -m benchmarks.mlstm_kernels --json result.json --markdown result.md

On a GPU, about five minutes; without one, `--quick` measures what runs on a CPU, at tiny shapes. Every
contender has its own process. The files are written after every row, so a run that is cut short leaves what
it has.
"""

import argparse
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import mlstm_cases as cases
from benchmarks.machine import about
from benchmarks.mlstm_decode import BATCHES, DECODE
from benchmarks.mlstm_report import markdown

Row = dict[str, Any]
ANSWER_S = 120
"""A worker that takes longer for one answer is stopped."""
WARM_UP_SHARE = 0.4
"""Of the time limit: what is not compiled by then, the measurement compiles."""


class Worker:
    """One contender's process, started anew after it died."""

    def __init__(self, device: str) -> None:
        self._environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the worker)

    def ask(self, request: Row, timeout_s: float) -> Row:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = _read_line(process, timeout_s)
        except BrokenPipeError:
            line = ""
        except TimeoutError:
            self.close()
            return {"error": f"no answer in {timeout_s:.0f} s"}
        return json.loads(line) if line else {"error": self._bury(process)}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mlstm_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=self._environment,
        )  # fmt: skip
        return self._process

    def _bury(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        self._process = None
        self._log.seek(0)
        last = [line.strip() for line in self._log if line.strip()][-1:]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"process {how}: {last[0][:120] if last else 'no message'}"


def _read_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda out=process.stdout: lines.put(out.readline()), daemon=True).start()
    try:
        return lines.get(timeout=max(0.0, timeout_s))
    except queue.Empty:
        raise TimeoutError from None


class Run:
    """The rows so far, written to the files after each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.rows: list[Row] = []
        self.workers: dict[str, Worker] = {}
        self.about = about("torch", "triton", "mlstm_kernels", "fla-core", "numpy")

    @property
    def left_s(self) -> float:
        return self.options.time_limit - (time.monotonic() - self.started)

    def ask(self, request: Row, name: str | None = None, reserve_s: float = 0.0) -> Row:
        """By the contender's worker, or by another one's; `reserve_s` of the time is left to others."""
        left = self.left_s - reserve_s
        if left <= 0:
            return {"error": "not run: time limit"}
        worker = self.workers.setdefault(name or request["contender"], Worker(self.options.device))
        answer = worker.ask(request, min(ANSWER_S, left))
        if left < ANSWER_S and answer.get("error", "").startswith("no answer"):
            answer["error"] += ", all that the time limit left"
        return answer

    def measure(self, request: Row) -> None:
        row = request | self.ask(request)
        self.rows.append(row)
        what = row["shape"]["name"] if "shape" in row else f"B={row.get('batch', '')}"
        result = {key: value for key, value in row.items() if key not in request}
        spent = time.monotonic() - self.started
        print(f"[{spent:5.0f} s] {row['kind']:10} {row['contender']:15} {what} {result}", flush=True)
        self.write()

    def write(self) -> None:
        result = {**self.about, "rows": self.rows}
        if self.options.json:
            _write(self.options.json, json.dumps(result, indent=1))
        if self.options.markdown:
            _write(self.options.markdown, markdown(result))

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def plan(options: argparse.Namespace) -> list[Row]:
    """Speeds first, and ours and the steps, which are short, before the peers': what a time limit cuts off
    stands last, and errors can be measured in a run of their own."""
    quick, cpu = options.quick, options.device == "cpu"
    chosen = [c for c in cases.CONTENDERS.values() if not (cpu and c.gpu_only)]
    shapes = cases.QUICK_SHAPES if quick else cases.SHAPES
    short, long = (
        (cases.QUICK_ACCURACY, cases.QUICK_ACCURACY_LONG) if quick else (cases.ACCURACY, cases.ACCURACY_LONG)
    )
    steps = [d for d in DECODE.values() if not (cpu and d.gpu_only)]
    requests: list[Row] = [
        {"kind": "bandwidth", "contender": "copy", "size": 2**20 if quick else 2**31},
    ]

    def speeds(ours: bool) -> list[Row]:
        return [
            {
                "kind": "speed",
                "contender": c.name,
                "shape": dataclasses.asdict(shape),
                "budget_s": options.budget,
            }
            for c in chosen
            if c.timed and ours == c.name.startswith("ours")
            for shape in shapes
            if c.takes(shape)
        ]

    decode = [
        {"kind": "decode", "contender": d.name, "batch": batch}
        for d in steps
        for batch in (BATCHES[:1] if quick else BATCHES)
    ]
    requests += [*speeds(ours=True), *decode, *speeds(ours=False)]
    requests += [
        {"kind": "errors", "contender": c.name, "shape": dataclasses.asdict(shape)}
        for shape in (short, long)
        for c in chosen
        if c.cell != "other" and not c.recorded
    ]
    requests += [
        {"kind": "decode-errors", "contender": d.name} for d in steps if d.name in ("step", "step-bf16")
    ]
    return [request for request in requests if _wanted(request, options)]


def _wanted(request: Row, options: argparse.Namespace) -> bool:
    """`--only` takes kinds and contenders, `--shapes` parts of the names of shapes."""
    only = options.only
    if only and request["kind"] not in only and request["contender"] not in only:
        return False
    shapes = options.shapes
    return not shapes or request["kind"] != "speed" or any(s in request["shape"]["name"] for s in shapes)


def warm_up(run: Run, requests: list[Row]) -> None:
    """All workers start and compile at the same time, each what is next: the cache on disk serves the others.

    What fails is tried again by itself, for so many at once may lack memory; what fails then, the measurement
    meets again.
    """
    tasks: queue.SimpleQueue[Row] = queue.SimpleQueue()
    # Each begins with what is its own: imports, and a first launch of its kernels, are not another's to make.
    own = {r["contender"]: r | {"budget_s": 0.0} for r in requests if r["kind"] in ("decode", "bandwidth")}
    for request in requests:
        if "shape" in request and request["contender"] != "reference":  # it has nothing to compile
            task = {**request, "kind": "warm-up"}
            if own.setdefault(request["contender"], task) is not task:
                tasks.put(task)
    room = threading.Semaphore(max(1, min(12, (os.cpu_count() or 2) * 3 // 4)))
    names = list(dict.fromkeys(request["contender"] for request in requests))
    reserve = (1 - WARM_UP_SHARE) * run.options.time_limit

    def compile_all(name: str) -> None:
        task = own.get(name, {"kind": "start"})
        while run.left_s > reserve:
            with room:
                if "error" in run.ask(task, name, reserve) and task["kind"] == "warm-up":
                    failed.append((name, task))
            try:
                task = tasks.get_nowait()
            except queue.Empty:
                return

    failed: list[tuple[str, Row]] = []
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        list(pool.map(compile_all, names))
    for name, task in failed:
        if run.left_s > reserve and (error := run.ask(task, name, reserve).get("error")):
            print(f"warm-up     {task['contender']:15} {task['shape']['name']} {error}", flush=True)
    print(f"[{time.monotonic() - run.started:5.0f} s] compiled", flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all rows here")
    parser.add_argument(
        "--markdown", "--out", type=Path, help="write the tables here (always printed at the end)"
    )
    parser.add_argument("--shapes", nargs="+", help="only shapes whose name contains one of these")
    parser.add_argument(
        "--only", nargs="+", help="only these contenders or kinds (bandwidth, errors, decode, speed)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--budget", type=float, default=0.25, help="seconds for each median")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for the whole run")
    parser.add_argument("--no-warm-up", action="store_true", help="compile one after the other")
    options = parser.parse_args(arguments)
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cpu" and not options.quick:
        parser.error("no GPU here: pass --quick for the reference at tiny shapes")
    known = set(_names())
    if unknown := [name for name in options.only or () if name not in known]:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(_names())}")
    return options


def _names() -> Iterator[str]:
    yield from ("bandwidth", "errors", "decode-errors", "decode", "speed", "copy")
    yield from cases.CONTENDERS
    yield from DECODE


def main(arguments: list[str] | None = None) -> None:
    run = Run(parse(arguments))
    requests = plan(run.options)
    try:
        if run.options.device == "cuda" and not run.options.no_warm_up:
            warm_up(run, requests)
        for request in requests:
            run.measure(request)
    finally:
        run.close()
    print(markdown({**run.about, "rows": run.rows}))


if __name__ == "__main__":
    main()
