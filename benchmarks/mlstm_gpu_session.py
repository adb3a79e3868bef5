"""All that a GPU has to decide about the mLSTM kernels, in one call of a few minutes on a bare machine.

    python -m benchmarks.mlstm_gpu_session --json session.json --wheels wheels

1. the tests marked `gpu`; 2. the numeric trial of every configuration, with Triton's own assembler and, if
`--ptxas` names one, with a newer; 3. the benchmark beside the peers; 4. other blocks, kernel by kernel. Each
step has its share of the time, runs in processes of its own, and is written to the file when it ends, so that
no crash, no hang and no cut takes what is known already. The tables of step 3 are also in files beside it.

`--wheels`: a folder of wheels, unpacked without network or dependencies, where the machine has not what is
needed: pytest, pytest-xdist, pytest-timeout, hypothesis, filelock and theirs, mlstm_kernels, einops,
fla-core.

Exit code 0: every step ended; 1: one did not; 2: no GPU.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine

Row = dict[str, Any]
STEPS = {"tests": 0.30, "trials": 0.15, "benchmark": 0.35, "tune": 0.20}
"""And their shares of the time; what one leaves goes to the next."""
WIDTHS = ((64, 128), (128, 256), (256, 512))
TAIL = 4000
"""Characters of a process's last output that are kept."""


class Session:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.environment = dict(os.environ)
        self.found: Row = {"about": about(), "steps": {}}

    @property
    def left_s(self) -> float:
        return float(self.options.time_limit) - (time.monotonic() - self.started)

    def beside(self, suffix: str) -> Path:
        path: Path = self.options.json
        return path.with_name(f"{path.stem}-{suffix}")

    def keep(self, step: str, row: Row) -> None:
        self.found["steps"][step] = row
        self.options.json.parent.mkdir(parents=True, exist_ok=True)
        new = self.options.json.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1))
        new.replace(self.options.json)

    def run(self, command: list[str], timeout_s: float, **more: str) -> Row:
        """A process to its end or its time limit: its exit code (None: cut), seconds and last output."""
        begun, log = time.monotonic(), self.beside("log.txt")
        with log.open("w+") as out:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=out, stderr=subprocess.STDOUT, env=self.environment | more,
                start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(timeout=max(1.0, timeout_s))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                code = None
            out.seek(0)
            text = out.read()
        return {"code": code, "seconds": round(time.monotonic() - begun, 1), "tail": text[-TAIL:]}


def about() -> Row:
    import triton

    assembler = triton.knobs.nvidia.ptxas
    python = sys.version.split()[0]
    return {**machine.about("torch", "triton"), "ptxas": assembler.version, "python": python}


def unpack(session: Session, wheels: Path) -> None:
    """In front of what is installed; needs neither network nor pip. A broken wheel is no reason to stop."""
    target = session.beside("wheels").absolute()
    rows: dict[str, str] = {}
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            rows[wheel.name] = ""
        except (OSError, zipfile.BadZipFile) as error:
            rows[wheel.name] = f"{type(error).__name__}: {error}"
    paths = [str(target), session.environment.get("PYTHONPATH", "")]
    session.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    session.keep("wheels", {"code": int(any(rows.values()) or not rows), "wheels": rows})


def tests(session: Session, timeout_s: float) -> Row:
    """Outcomes are read from the lines that pytest prints as tests end, so that a cut leaves those that
    did."""
    command = [
        "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "tests/kernels",
        "-n", str(workers()), "-p", "no:cacheprovider",
    ]  # fmt: skip
    row = session.run(command, timeout_s)
    return row | outcomes(session.beside("log.txt").read_text())


def outcomes(log: str) -> Row:
    """Numbers of tests by outcome, and the names of those that failed."""
    found = re.findall(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (\S.*)$", log, re.MULTILINE)
    counts = Counter(outcome for outcome, _ in found)
    bad = sorted({name.strip() for outcome, name in found if outcome in ("FAILED", "ERROR")})
    return {"outcomes": dict(counts), "failed": bad}


def trials(session: Session, timeout_s: float) -> Row:
    """Of every configuration and kind of problem, by assembler: the error, or how its process ended."""
    from kernels.mlstm.sequence_check import Trial
    from kernels.mlstm.sequence_configs import candidates

    requests = [
        Trial(
            config=config.name, dtype=str(dtype).removeprefix("torch."), width=K, value_width=V, packed=full,
            starts=full, ends=full, described=described,
        )
        for K, V in WIDTHS
        for full in (False, True)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for config in candidates(dtype)
        if dtype != torch.float16 or WIDTHS[0] == (K, V)
        for described in (False, True)
        if not described or (dtype == torch.bfloat16 and config.described is not None and not full)
    ]  # fmt: skip
    assemblers = {"own": {}} | ({str(session.options.ptxas): {}} if session.options.ptxas else {})
    until = time.monotonic() + timeout_s
    for name, rows in assemblers.items():
        environment = session.environment
        if name != "own":
            cache = str(session.beside("cache").absolute())
            environment = environment | {"TRITON_PTXAS_PATH": name, "TRITON_CACHE_DIR": cache}
        with ThreadPoolExecutor(workers()) as pool:
            results = pool.map(lambda trial, env=environment: tried(trial, env, until), requests)  # type: ignore[misc]
            rows |= {str(trial): result for trial, result in zip(requests, results, strict=True)}
    return {"code": 0, "by_assembler": assemblers}


def tried(trial: Any, environment: dict[str, str], until: float) -> float | str:
    command = [
        sys.executable,
        "-m",
        "kernels.mlstm.sequence_check",
        json.dumps(asdict(trial) | {"device": 0}),
    ]
    left = until - time.monotonic()
    if left <= 0:
        return "not run: time limit"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=left, check=False
        )
    except subprocess.TimeoutExpired:
        return "cut: time limit"
    if done.returncode:
        return f"code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:160]}"
    return float(json.loads(done.stdout.splitlines()[-1])["error"])


def benchmark(session: Session, timeout_s: float) -> Row:
    command = ["-m", "benchmarks.mlstm_kernels", "--time-limit", f"{timeout_s - 10:.0f}"]
    files = [
        "--json",
        str(session.beside("benchmark.json")),
        "--markdown",
        str(session.beside("benchmark.md")),
    ]
    return session.run([*command, *files], timeout_s + 20)


def tune(session: Session, timeout_s: float) -> Row:
    command = ["-m", "benchmarks.mlstm_tune", "--time-limit", f"{timeout_s - 5:.0f}"]
    return session.run([*command, "--json", str(session.beside("tune.json"))], timeout_s + 10)


def workers() -> int:
    return max(1, min(8, (os.cpu_count() or 2) // 2))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="what was found; other files stand beside it"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to unpack first")
    parser.add_argument(
        "--ptxas", type=Path, help="a second assembler for the trials, best of CUDA 13.1 or later"
    )
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--time-limit", type=float, default=520.0, help="seconds for all steps")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("mlstm_gpu_session: no GPU here; nothing was run", file=sys.stderr)
        return 2
    session = Session(options)
    if options.wheels:
        unpack(session, options.wheels)
    run = {"tests": tests, "trials": trials, "benchmark": benchmark, "tune": tune}
    for number, step in enumerate(options.steps):
        rest = sum(STEPS[later] for later in options.steps[number:])
        share = session.left_s * STEPS[step] / rest
        try:
            row = run[step](session, share)
        except Exception as error:
            row = {"code": 1, "problem": f"{type(error).__name__}: {error}"}
        session.keep(step, row)
        print(f"[{time.monotonic() - session.started:4.0f} s] {step}: code {row['code']}", flush=True)
    return int(any(row["code"] != 0 for row in session.found["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
