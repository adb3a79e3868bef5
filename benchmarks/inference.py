"""Time to first token and step time on one GPU: ours and transformers', both architectures, in one run.

    python -m benchmarks.inference --json inference.json --markdown inference.md

Needs torch, and triton and transformers on a GPU; nothing else of the project's dependencies. All processes
prepare at once; when all are ready, each measures alone. With `--gpus` of one kind the sizes are divided
among them, each with all its models on one GPU, where they still measure one after the other. Rows are
printed, and both files written, after every row; a process that crashes or hangs loses its own rows.
`--profile` adds which kernels a prefill and a step spend their time in. `--smoke` runs tiny models on a CPU.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.inference_cases import BATCHES, PREFILLS, SIZES, Job, make_jobs
from benchmarks.inference_profile import profile_table
from benchmarks.inference_report import report, row_line

LIMITS = -1
"""In the place of a job's number: the process that measures the device's limits."""
PREPARED_S = 120.0
"""A process that is not ready by then is given up."""
ENDING_S = 5.0


class Worker:
    """A process of the benchmark, its lines read by a thread."""

    def __init__(self, arguments: list[str], number: int, gpu: int) -> None:
        command = [sys.executable, "-m", "benchmarks.inference", *arguments, "--worker", str(number)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_seeing(gpu)
        )
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next line; None at its end or where none came in time."""
        try:
            return self.lines.get(timeout=max(0.1, timeout_s))
        except queue.Empty:
            return None

    def go(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"go {seconds}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)


def main() -> None:
    options = _options()
    jobs = make_jobs(
        options.sizes,
        options.prefills,
        options.batches,
        device=options.device,
        peers=not options.no_peers,
        generated=options.generated,
    )
    if options.worker is not None:
        _work(options, jobs)
        return
    start = time.monotonic()
    arguments = [argument for argument in sys.argv[1:] if argument != "--"]
    result: dict[str, Any] = {"limits": {}, "checks": {}, "notes": [], "measurements": [], "profiles": []}
    probers = [Worker(arguments, LIMITS, gpu) for gpu in range(options.gpus)]
    result["limits"], *others = [prober.next(PREPARED_S) or {} for prober in probers]
    if others:
        result["limits_of_other_gpus"] = others
    for prober in probers:
        prober.end()
    print(f"limits {json.dumps([result['limits'], *others])}", flush=True)
    gpus = [min(sorted(options.sizes, key=_width).index(job.size), options.gpus - 1) for job in jobs]
    workers = [Worker(arguments, number, gpu) for number, gpu in enumerate(gpus)]
    try:
        # All of them: who still prepares takes time from whom is measured, on the device and on the host.
        until = time.monotonic() + min(PREPARED_S, options.seconds)
        ready = [worker.next(until - time.monotonic()) for worker in workers]
        print(f"ready after {time.monotonic() - start:.0f} s", flush=True)
        found = Findings(result, options)

        def measure(gpu: int) -> None:
            for job, worker, said, its in zip(jobs, workers, ready, gpus, strict=True):
                if its == gpu:
                    _measure(job, worker, said, options.seconds - (time.monotonic() - start), found)

        with ThreadPoolExecutor(options.gpus) as threads:
            list(threads.map(measure, range(options.gpus)))
    finally:
        for worker in workers:
            worker.end()
    names = [job.name for job in jobs]
    result["measurements"].sort(key=lambda row: names.index(f"{row['engine']} {row['arch']} {row['model']}"))
    result["seconds"] = time.monotonic() - start
    _write(result, options)
    print(report(result))


def _width(size: str) -> int:
    """For an order from the widest on."""
    return -SIZES[size][0]


def _seeing(gpu: int) -> dict[str, str]:
    """The environment of a process to which there is one GPU, of those that there are to this one."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    one = str(gpu) if seen is None else seen.split(",")[gpu] if seen else ""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": one}


class Findings:
    """What is found by the threads of several GPUs: kept, printed, and on disk."""

    def __init__(self, result: dict[str, Any], options: argparse.Namespace) -> None:
        self.result = result
        self.options = options
        self.lock = threading.Lock()

    def check(self, job: Job, checked: dict[str, Any]) -> None:
        with self.lock:
            self.result["checks"][job.name] = checked
            print(f"{job.name}: {json.dumps(checked)}", flush=True)

    def keep(self, kind: Literal["measurements", "profiles", "notes"], found: Any, line: str) -> None:
        with self.lock:
            self.result[kind].append(found)
            _write(self.result, self.options)
            print(line, flush=True)


def _measure(job: Job, worker: Worker, ready: dict[str, Any] | None, left_s: float, found: Findings) -> None:
    """Have one process measure; what it does not reach is a note."""

    def note(text: str) -> None:
        found.keep("notes", f"{job.name}: {text}", f"{job.name}: {text}")

    if left_s < ENDING_S:
        note("not reached in the time")
        return
    if ready is None or ready.get("event") != "ready":
        code = worker.process.poll()
        note(f"did not get ready ({'too slow' if code is None else code})")
        return
    found.check(job, ready["checked"])
    deadline = time.monotonic() + left_s - ENDING_S
    worker.go(left_s - ENDING_S)
    while (said := worker.next(deadline - time.monotonic())) is not None and said["event"] != "done":
        if said["event"] == "left":
            note(f"{said['points']} points not reached in the time")
            continue
        row = {name: value for name, value in said.items() if name != "event"}
        if said["event"] == "profile":
            found.keep("profiles", row, profile_table(row))
        else:
            found.keep("measurements", row, row_line(row, found.result["limits"]))
    if said is None:
        note("ended before its last point")
    worker.end()


def _write(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        Path(options.markdown).write_text(report(result), encoding="utf-8")


def _work(options: argparse.Namespace, jobs: list[Job]) -> None:
    from benchmarks import inference_worker

    if options.worker == LIMITS:
        inference_worker.limits(options.device, "bf16" if options.device == "cuda" else "fp32")
    else:
        job = replace(jobs[options.worker], graph=not options.eager)
        inference_worker.main(job, profile=options.profile)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["160M", "400M", "1.4B"])
    parser.add_argument("--prefills", nargs="+", type=int, default=list(PREFILLS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--generated", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=285.0, help="after which no new point begins")
    parser.add_argument("--gpus", type=int, default=1, help="of one kind, to divide the sizes among")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny models on a CPU: does everything run?")
    parser.add_argument("--profile", action="store_true", help="after each row, its kernels by their time")
    parser.add_argument("--json")
    parser.add_argument("--markdown")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--eager", action="store_true", help="peers decode without a CUDA graph")
    options = parser.parse_args()
    if options.smoke:
        options.device, options.sizes = "cpu", ["smoke"]
        options.prefills, options.batches, options.generated = [128, 512], [1, 4], 4
    return options


if __name__ == "__main__":
    main()
