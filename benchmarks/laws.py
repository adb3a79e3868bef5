"""Scaling-law fits side by side, in one run: ours, the textbook with scipy, and peers that pip can install.

    python -m benchmarks.laws --json result.json --markdown result.md
    python -m benchmarks.laws --full --peer-python peers/bin/python

The peers are not dependencies of this project. Install them where they disturb nothing:

    python -m venv peers && peers/bin/pip install chinchilla 'vpnls[scipy]'

One that is absent or crashes is a row that says so. Every contender is a process of its own, pinned to one
core with one thread. Without `--full` (a minute or two) the slow ones do a part of their starts. Their 4,000
resamples are always extrapolated from a few hundred, and those of the peers, which have no bootstrap, from
one fit: the tables say which numbers are extrapolated. The points are Hoffmann et al.'s (2022), Fig. 4, as
read off by Epoch AI: the 240 that are left without the five of lowest loss.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.laws_contenders import CONTENDERS, RESAMPLES, Task, huber_sum, pin_to_one_core, sampled_excess
from benchmarks.laws_report import markdown

Row = dict[str, Any]
POINTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "laws" / "chinchilla_epoch_245.csv"
PEERS = ("chinchilla", "vpnls-grid", "vpnls-scipy")
LIMIT_S = 900
"""A contender that takes longer is stopped."""
CHECK_EVERY = 200
"""Every two-hundredth of our resamples is polished by scipy."""
LIBRARIES = ("numpy", "scipy", "polars", "chinchilla", "vpnls")


def read_points(path: Path, *, full: bool = False, resamples: int = RESAMPLES) -> Task:
    """The 240 points that `epoch_keep` marks. SystemExit says where they were looked for."""
    if not path.exists():
        raise SystemExit(
            f"{path}: no such file; name the points with --points (they are not in this repository)"
        )
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    kept = table[np.char.lower(table["epoch_keep"].astype(str)) == "true"]
    N, D, loss = (kept[name].astype(float) for name in ("params", "tokens", "loss"))
    return Task(N=N, D=D, loss=loss, full=full, resamples=resamples)


def run_contender(name: str, options: argparse.Namespace) -> Row:
    """One contender in its own process: what it measured, or why there is nothing."""
    python = str(options.peer_python) if name in PEERS else sys.executable
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [python, "-m", "benchmarks.laws", "--contender", name, "--json", str(answer)]
        command += ["--points", str(options.points), "--resamples", str(options.resamples)]
        command += ["--full"] if options.full else []
        try:
            done = subprocess.run(
                command, env=os.environ | threads, cwd=Path(__file__).resolve().parents[1],
                capture_output=True, text=True, timeout=LIMIT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"contender": name, "error": f"stopped after {LIMIT_S} s"}
        if answer.exists():
            return {"contender": name, **json.loads(answer.read_text())}
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        return {
            "contender": name,
            "error": f"exit code {done.returncode}: {(last or ['no message'])[0][:160]}",
        }


def measure(name: str, task: Task) -> Row:
    """In the contender's process: its numbers, or the error that it ended in, in one line."""
    pin_to_one_core()
    try:
        row = CONTENDERS[name][1](task)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    return row | {"versions": _versions()}


def compare(options: argparse.Namespace) -> Row:
    """All contenders one after the other, ours several times; the best and the median of ours are kept."""
    task = read_points(options.points, resamples=options.resamples)
    load = [os.getloadavg()[0]]
    rows = []
    for name in options.only or CONTENDERS:
        repeats = options.repeats if name == "ours" else 1
        tries = [run_contender(name, options) for _ in range(repeats)]
        row = _best(tries)
        if "params" in row:
            row["objective"] = huber_sum(_theta(row["params"]), task)
        if "ends" in row:
            row["sampled_excess"] = sampled_excess(task, np.array(row.pop("ends")), CHECK_EVERY)
        rows.append(row)
        load.append(os.getloadavg()[0])
        print(f"{name}: {row.get('error') or _brief(row)}", file=sys.stderr, flush=True)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.laws" + (" --full" if options.full else ""),
        "python": sys.version.split()[0],
        "processor": _processor(),
        "load": {"first": load[0], "highest": max(load), "cores": os.cpu_count()},
        "versions": {key: v for row in rows for key, v in row.pop("versions", {}).items()},
        "n_points": len(task.N),
        "resamples": options.resamples,
        "full": options.full,
        "rows": rows,
    }


def _best(tries: Sequence[Row]) -> Row:
    """The quickest try, with the wall seconds of all of them."""
    good = [row for row in tries if "error" not in row]
    if not good:
        return tries[0]
    walls = [_wall(row) for row in good]
    best = good[int(np.argmin(walls))]
    return best | ({"walls": sorted(walls)} if len(good) > 1 else {})


def _wall(row: Row) -> float:
    return sum(row[part]["wall"] for part in ("fit", "bootstrap", "together") if part in row)


def _brief(row: Row) -> str:
    return f"{_wall(row):.3g} s, objective {row['objective']:.12g}"


def _theta(params: Sequence[float]) -> np.ndarray:
    return np.array([*np.log(params[:3]), *params[3:]])


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--markdown", type=Path, help="write the tables here (always printed at the end)")
    parser.add_argument("--points", type=Path, default=POINTS, help="chinchilla_epoch_245.csv")
    parser.add_argument("--full", action="store_true", help="every start of every grid: ten minutes")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--repeats", type=int, default=5, help="runs of ours; the quickest counts")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), help="only these contenders")
    parser.add_argument(
        "--peer-python", type=Path, default=Path(sys.executable), help="interpreter that has the peers"
    )
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.points = options.points.absolute()
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.contender:
        task = read_points(options.points, full=options.full, resamples=options.resamples)
        row = measure(options.contender, task)
        options.json.write_text(json.dumps(row))
        return
    result = compare(options)
    text = markdown(result)
    for path, content in ((options.json, json.dumps(result, indent=1)), (options.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n" if path is options.json else content)
    print(text)


if __name__ == "__main__":
    main()
