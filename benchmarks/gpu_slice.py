"""One slice of a sweep on a machine that is bare before and gone after: restore, train for so long, pack.

    python -m benchmarks.gpu_slice --home HOME --out OUT [--from ARCHIVE] [--corpora FILE] [--time-limit 8m]

The state is the one in --home where the machine still has it from the slice before, else the archive that
came along. What is packed fits a few small files; what has no room in it (the largest checkpoints of runs
that were cut) is said, and is lost only if the machine is. Prints a summary, and writes it to OUT/slice.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tasks.state import open_state

ISOFLOP = (sys.executable, "-m", "flows.cli")
PAUSED = 75
ARCHIVE = "sweep.tar.xz"
ERRORS = 6
LOG_LINES = 200


def main() -> None:
    """The slice, with what it took."""
    options = _options()
    started = time.time()
    os.environ["ISOFLOP_HOME"] = str(options.home)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    origin = _restore(options)
    restored = time.time()
    command = [*ISOFLOP, "sweep", options.profile, "--no-report", "--time-limit", options.time_limit]
    command += [part for text in options.set for part in ("--set", text)]
    code = subprocess.run(command, check=False).returncode
    trained = time.time()
    subprocess.run([*ISOFLOP, "down", "--force"], check=False)
    pack = [*ISOFLOP, "pack", str(out / ARCHIVE), "--part-size", "16000KiB", "--limit", options.limit]
    packed = subprocess.run(pack, check=False).returncode
    errors = _errors(options.home)
    if errors or code not in (0, PAUSED):
        _keep_logs(options.home, errors, out / "logs.txt")
    summary = {
        "origin": origin,
        "sweep_exit_code": code,
        "pack_exit_code": packed,
        "finished": code == 0,
        "restore_s": round(restored - started, 1),
        "sweep_s": round(trained - restored, 1),
        "pack_s": round(time.time() - trained, 1),
        "progress": _progress(options.home),
        "errors": [f"{run['name']}: {run['error']}" for run in errors][:ERRORS],
    }
    (out / "slice.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(json.dumps(summary, indent=1))
    sys.exit(0 if code in (0, PAUSED) and packed == 0 else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--profile", default="gpu", help="a shipped profile, or the path of a spec")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--home", type=Path, required=True, help="the state folder on this machine")
    parser.add_argument("--from", dest="archive", type=Path, help="what the slice before packed")
    parser.add_argument("--corpora", type=Path, help="a .tar.xz with the folder data/ of a state folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for what goes back")
    parser.add_argument("--time-limit", default="8m")
    parser.add_argument("--limit", default="56MiB", help="of all that is packed")
    return parser.parse_args()


def _restore(options: argparse.Namespace) -> str:
    """Have the state folder as the slice before left it; where it came from."""
    home: Path = options.home
    if options.corpora is not None and not any((home / "data").glob("*/meta.json")):
        open_state(home)
        subprocess.run(["tar", "-xJf", str(options.corpora), "-C", str(home)], check=True)
    if (home / "mlflow.db").exists():
        return "this machine"
    if options.archive is None:
        return "nothing"
    subprocess.run([*ISOFLOP, "unpack", str(options.archive)], check=True)
    return str(options.archive)


def _runs(home: Path) -> list[dict[str, Any]]:
    """What a sweep last said of its runs."""
    files = sorted((home / "sweeps").glob("*/progress.json"))
    return [run for path in files for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]


def _progress(home: Path) -> dict[str, int]:
    """How many runs are what."""
    return dict(Counter(run["status"] for run in _runs(home)))


def _errors(home: Path) -> list[dict[str, Any]]:
    """Runs that failed, or had to be tried again."""
    return [run for run in _runs(home) if run["error"] and run["status"] != "paused"]


def _keep_logs(home: Path, errors: list[dict[str, Any]], kept: Path) -> None:
    """The ends of what the services said, and the trainings that had errors, in one file."""
    logs = [*sorted((home / "logs").glob("*.log"))]
    logs += [log for run in errors if (log := home / "runs" / run["run_key"] / "log.txt").exists()]
    ends = [log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] for log in logs]
    text = "".join(f"==> {log}\n" + "\n".join(end) + "\n\n" for log, end in zip(logs, ends, strict=True))
    kept.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
