"""Forty small runs as a sweep trains them: on one GPU, on two, with kill -9 of the flow half way, by Ray.

And sixteen of which the largest four are trained by two GPUs each, beside the small ones: `mixed`.

The plan, the ledger, the launcher, the trainer and MLflow are those of the flow; Prefect, which draws the
display, is left out, so that a bare machine needs fewer wheels. Four runs share a GPU. After the kill the
same command goes on; what was finished before must be there untouched, and every run finished once. A short
sweep of each shape goes first and is no row: its text and its compiled kernels are every row's.

    python -m benchmarks.multi_gpu_sweep HOME SPEC     # the flow
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.multi_gpu_rooms import PARTS, watched

Row = dict[str, Any]
RUNS = 40
GPUS = "gpus.json"
"""Of a flow's folder: what its GPUs were handed out to."""
WARM_UP = 1 / 4
"""Of a run's FLOPs, for the runs before the first row."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a row measures."""

    gpus: int
    killed: bool = False
    through_ray: bool = False
    seeds: int | None = None
    """The first so many; None for all."""
    shares: Row | None = None
    """GPUs of a run by its size; None for those of the sweep."""


ROWS = {
    "one": Sweep(gpus=1),
    "two": Sweep(gpus=2),
    "killed": Sweep(gpus=2, killed=True),
    "ray": Sweep(gpus=2, through_ray=True),
    "mixed": Sweep(gpus=2, seeds=2, shares={"gpus": {4e6: 0.25, 1e7: 2}}),
}
SPEC: Row = {
    "name": "multi-gpu",
    "archs": ["mlstm", "transformer"],
    "context_lengths": [512],
    "budgets": [3e14],
    "ladder": {
        "shapes": [
            {"d_model": 128, "num_blocks": 4, "num_heads": 2},
            {"d_model": 192, "num_blocks": 4, "num_heads": 3},
            {"d_model": 256, "num_blocks": 4, "num_heads": 4},
            {"d_model": 256, "num_blocks": 6, "num_heads": 4},
        ]
    },
    "learning_rate": {"base": 2e-3},
    "batch": {"tokens": 32_768},
    "data": {"max_bytes": 20_000_000},
    "seeds": [0, 1, 2, 3, 4],
    "precision": "bf16",
    "resources": {"device": "cuda", "gpus": 0.25, "flops_per_s": 2e13, "checkpoint_every_s": 5},
}
QUICK: Row = {
    **SPEC,
    "context_lengths": [32],
    "budgets": [4e8],
    "ladder": {"shapes": [{"d_model": 16, "num_blocks": 1, "num_heads": 1}]},
    "batch": {"tokens": 64},
    "data": {"max_bytes": 300_000},
    "validation": {"tokens": 4096},
    "seeds": [0, 1, 2],
    "precision": "fp32",
    "resources": {"device": "cpu", "checkpoint_every_s": 1},
}
PACKAGES = (
    "alembic", "annotated-doc", "annotated-types", "anyio", "attrs", "cachetools", "certifi", "cffi",
    "charset-normalizer", "click", "cloudpickle", "cryptography", "databricks-sdk", "fastapi", "filelock",
    "gitdb", "gitpython", "google-auth", "greenlet", "idna", "importlib-metadata", "jsonschema",
    "jsonschema-specifications", "mako", "markupsafe", "mlflow-skinny", "nvidia-ml-py", "opentelemetry-api",
    "opentelemetry-proto", "opentelemetry-sdk", "opentelemetry-semantic-conventions", "packaging", "polars",
    "polars-runtime-32", "protobuf", "pyasn1", "pyasn1-modules", "pycparser", "pydantic", "pydantic-core",
    "python-dateutil", "python-dotenv", "pyyaml", "ray", "referencing", "requests", "rpds-py", "six", "smmap",
    "sniffio", "sqlalchemy", "sqlparse", "starlette", "typing-extensions", "typing-inspection", "urllib3",
    "zipp",
)  # fmt: skip
"""Of `--wheels`, for a machine that has torch and Lightning alone:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        -c constraints.txt -d FOLDER PACKAGE...

Where that is too much to carry, unpack them, and pack one .tar.xz by `xz --x86 --lzma2=preset=9,dict=128MiB`.
Of Ray, the folders jars, rllib, dashboard/client, llm, serve, data, tune, train, workflow and cpp can stay.
"""


def sweep(options: argparse.Namespace, keep: Callable[[Row], None], left: Callable[[], float]) -> bool:
    """The rows that are asked for; whether all that must hold did."""
    import torch

    columns = ("runs", "how", "seconds", "over one GPU", "lost", "trained twice", *PARTS, "")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    spec = QUICK if options.quick else SPEC
    alone: float | None = None
    well = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = {**os.environ, **wheels(options.wheels, folder / "wheels")}
        try:
            warm_up(folder, spec, environment)
        except RuntimeError as error:
            print(f"| before the first row: {error} |", flush=True)
            keep({"how": "warm-up", "error": str(error)})
            return False
        for name in options.rows or ROWS:
            row_of = ROWS[name]
            if not options.quick and row_of.gpus > torch.cuda.device_count():
                print(f"| {name} | there are {torch.cuda.device_count()} GPUs |", flush=True)
                continue
            if left() < 60:
                print(f"| {name} | not run: time limit |", flush=True)
                well = False
                continue
            row = one_sweep(folder / name, row_of, spec, environment, quick=options.quick)
            alone = row["seconds"] if name == "one" else alone
            over_one = row["seconds"] / alone if alone and row_of.seeds is None else None
            row |= {"how": name, "GPUs": row_of.gpus, "over_one": over_one}
            keep(row)
            well = well and "error" not in row and not row["lost"] and not row["twice"]
            shares = [f"{row['gpus'][part]:.3f}" if row["gpus"] else "" for part in PARTS]
            print(
                f"| {row['finished']} | {name} | {row['seconds']:.1f} | {row['over_one'] or 0:.2f}"
                f" | {row['lost']} | {row['twice']} | {' | '.join(shares)} | {row.get('error', '')} |",
                flush=True,
            )
    return well


def warm_up(folder: Path, spec: Row, environment: dict[str, str]) -> None:
    """A short sweep of every shape: the text is prepared, kernels are compiled, libraries read from disk."""
    (folder / "leases-warm").mkdir()
    (folder / "warm.yaml").write_text(
        yaml.safe_dump({**spec, "budgets": [C * WARM_UP for C in spec["budgets"]], "seeds": [0]})
    )
    variables = {**environment, "ISOFLOP_LEASES": str(folder / "leases-warm")}
    run_flow(folder / "warm", folder / "warm.yaml", variables, "train")


def wheels(folder: Path | None, target: Path) -> dict[str, str]:
    """The environment in which the content of wheels is found, or of archives of them unpacked."""
    if folder is None:
        return {}
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
            for entry in archive.infolist():
                if mode := entry.external_attr >> 16 & 0o777:  # Ray's servers are to be executable
                    (target / entry.filename).chmod(mode)
    for packed in sorted(folder.glob("*.tar.xz")):
        with tarfile.open(packed) as unpacked:
            unpacked.extractall(target, filter="data")
    paths = [str(target), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def one_sweep(home: Path, row: Sweep, shared: Row, variables: dict[str, str], *, quick: bool) -> Row:
    """A sweep from its start to the last run, without the preparation of its text."""
    resources = {**shared["resources"], **(row.shares or {})}
    if quick:
        resources["runs_in_parallel"] = row.gpus
        resources["gpus"] = 2 if row.shares else 1  # processes
    if row.through_ray:
        resources["cluster"] = {"engine": "ray"}
    spec = home.with_suffix(".yaml")
    spec.write_text(yaml.safe_dump({**shared, "resources": resources, "seeds": shared["seeds"][: row.seeds]}))
    leases = home.with_suffix(".leases")
    leases.mkdir()
    environment = {**variables, "ISOFLOP_LEASES": str(leases)}
    if not quick:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i in range(row.gpus))
    warm = home.parent / "warm"
    shutil.copytree(warm / "data", home / "data")
    shutil.copy(warm / "state.json", home)
    run_flow(home, spec, environment, "prepare")
    begun = time.monotonic()
    before: set[str] = set()
    error: Row = {}
    if row.killed:
        flow = start(home, spec, environment, "train")
        runs = int(run_flow(home, spec, environment, "count"))
        while flow.poll() is None and len(before) < runs // 2:
            time.sleep(1.0)
            before = ended(home)
        flow.send_signal(signal.SIGKILL)
        flow.wait()
        before = ended(home)
        if len(before) == runs:
            error = {"error": "every run had ended before the kill"}
    try:
        run_flow(home, spec, environment, "train")
    except RuntimeError as failure:
        error = {"error": str(failure)}
    seconds = time.monotonic() - begun
    finished = tracked(home)
    runs = int(run_flow(home, spec, environment, "count"))
    return {
        "seconds": seconds,
        "runs": runs,
        "finished": len(finished),
        "before_the_kill": len(before),
        "lost": runs - len(finished) + len(before - ended(home)),
        "twice": sum(len(ids) > 1 for ids in finished.values()),
        "gpus": {} if row.killed else handed_out(home),
        **error,
    }


def tracked(home: Path) -> dict[str, list[str]]:
    """By run key, the MLflow runs that finished."""
    query = (
        "select t.value, r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid"
        " where t.key = 'isoflop.run_key' and r.status = 'FINISHED' and r.lifecycle_stage = 'active'"
    )
    finished: dict[str, list[str]] = {}
    for key, run_id in from_mlflow(home, query):
        finished.setdefault(key, []).append(run_id)
    return finished


def from_mlflow(home: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of MLflow's database, read as SQLite, without MLflow."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True, timeout=30)) as database:
        return database.execute(query).fetchall()


def handed_out(home: Path) -> dict[str, float]:
    """The parts of the GPUs' time (`multi_gpu_rooms`); none on CPUs and a cluster's, which have no ledger."""
    file = home / GPUS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def ended(home: Path) -> set[str]:
    return {run_id for ids in tracked(home).values() for run_id in ids}


def start(home: Path, spec: Path, environment: dict[str, str], what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.multi_gpu_sweep", str(home), str(spec), what]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run_flow(home: Path, spec: Path, environment: dict[str, str], what: str) -> str:
    """Its last line; RuntimeError with it where it failed."""
    flow = start(home, spec, environment, what)
    said, _ = flow.communicate()
    last = (said.strip().splitlines() or [""])[-1]
    if flow.returncode:
        raise RuntimeError(f"{what}: {last[:200]}")
    return last


def main(home: str, spec_file: str, what: str) -> int:
    """The flow: prepare, count its runs, or train them; exit code 1 where a run did not finish."""
    from sweeps.plan import PlannedRun
    from tasks import preparation
    from tasks.engines import Here, launched_ahead, place
    from tasks.state import open_state
    from tasks.tracking_db import ensure_tracking_db
    from tasks.training import Outcome, Trainer

    state = open_state(Path(home))
    spec = preparation.read_spec(spec_file)
    ensure_tracking_db(state)
    corpus = preparation.prepare_data(spec, state)
    plan = preparation.plan_runs(spec, corpus)
    if what == "prepare":
        return 0
    if what == "count":
        print(len(plan.runs))
        return 0
    there = place(spec.resources, state)
    begun: list[str] = []

    def complete(run: PlannedRun) -> Outcome:
        begun.append(run.run_key)
        return trainer.complete(run)

    room = there.room
    ledger = room.ledger if isinstance(room, Here) and spec.resources.device == "cuda" else None
    with (
        watched(ledger, lambda: len(begun) < len(plan.runs), Path(home) / GPUS) if ledger else nullcontext(),
        launched_ahead(there, wanted=True) as launch,
        ThreadPoolExecutor(there.at_once) as threads,
        Trainer(spec, state, corpus, there.room, launch=launch) as trainer,
    ):
        outcomes = list(threads.map(complete, plan.runs))
    errors = [outcome.error for outcome in outcomes if outcome.status == "failed"]
    if errors:
        print(f"{len(errors)} failed, the first: {errors[0]}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
