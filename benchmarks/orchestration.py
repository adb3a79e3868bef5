"""What orchestration costs: overhead a run, a thousand cached runs to a report, many writers on one tracker.

python -m benchmarks.orchestration                       # all three, a Markdown table
python -m benchmarks.orchestration --only writers --json out.json

Everything runs as a user runs it: the command `isoflop sweep` with its real services, in a state folder that
is made for the benchmark and removed. Cached runs are written to MLflow with losses of a known law.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from sweeps.plan import Plan
from tasks import preparation, tracking
from tasks.environment import environment
from tasks.progress import read_progress
from tasks.state import State, open_state
from tasks.tracking_db import ensure_tracking_db

PROJECT = Path(__file__).parents[1]
POLL_S = 0.02
WRITERS = 8
STEPS = 400
STEP_S = 0.05
"""A step of a writer is sleep: eight of them share the tracker and not the cores."""

SPEC: dict[str, Any] = {
    "archs": ["mlstm", "transformer"],
    "context_lengths": [32],
    "learning_rate": {"base": 0.01, "reference_width": 16},
    "batch": {"tokens": 64},
    "data": {"name": "benchmark", "max_bytes": 2_000_000},
    "validation": {"tokens": 1024, "times": 2},
}
THOUSAND = {
    **SPEC,
    "name": "thousand",
    "budgets": [1e9, 2e9, 4e9, 8e9, 1.6e10, 3.2e10, 6.4e10, 1.28e11, 2.56e11, 5.12e11],
    "ladder": {
        "shapes": [{"d_model": 8 * k, "num_blocks": 1, "num_heads": 1} for k in range(1, 11)],
        "ffn_multiple_of": 8,
    },
    "seeds": [0, 1, 2, 3, 4],
    "resources": {"device": "cpu"},
    "laws": {"resamples": 1000},
}
NEW = {
    **SPEC,
    "name": "new",
    "archs": ["transformer"],
    "budgets": [4e8, 8e8],
    "ladder": {
        "shapes": [{"d_model": d, "num_blocks": 1, "num_heads": 1} for d in (8, 12, 16, 24)],
        "ffn_multiple_of": 8,
    },
    "resources": {"device": "cpu", "runs_in_parallel": 1},
    "laws": {"resamples": 20},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    what: str
    value: float
    unit: str
    target: str
    note: str = ""


class Bench:
    """A state folder with running services."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = open_state(folder / "state")
        self.env = environment(self.state) | {"ISOFLOP_LEASES": str(folder / "leases"), "COLUMNS": "160"}
        self.env.pop("PREFECT_API_URL", None)
        os.environ["ISOFLOP_LEASES"] = self.env["ISOFLOP_LEASES"]

    def isoflop(self, *command: str) -> None:
        subprocess.run(self._program(*command), env=self.env, cwd=PROJECT, check=True, stdout=sys.stderr)

    def _program(self, *command: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *command]

    def sweep(self, fields: dict[str, Any]) -> dict[str, float]:
        """Run a sweep by the command; seconds from its start to the end of each stage, and to its own."""
        spec = self.folder / f"{fields['name']}.yaml"
        spec.write_text(yaml.safe_dump(fields))
        started, stamps, stage = time.monotonic(), {}, ""
        before = _flow(self.state, fields["name"])
        with subprocess.Popen(
            self._program("sweep", str(spec)), env=self.env, cwd=PROJECT, stdout=sys.stderr
        ) as process:
            while process.poll() is None:
                progress = read_progress(self.state, fields["name"])
                if progress is not None and progress.flow_run_id != before and progress.stage != stage:
                    stage = progress.stage
                    stamps[stage] = time.monotonic() - started
                time.sleep(POLL_S)
        if process.returncode:
            raise SystemExit(f"isoflop sweep {spec} ended with {process.returncode}")
        return {**stamps, "exit": time.monotonic() - started}

    def plan(self, fields: dict[str, Any]) -> Plan:
        spec = self.folder / f"{fields['name']}.yaml"
        spec.write_text(yaml.safe_dump(fields))
        parsed = preparation.read_spec(spec)
        return preparation.plan_runs(parsed, preparation.prepare_data(parsed, self.state))


def _flow(state: State, name: str) -> str | None:
    progress = read_progress(state, name)
    return None if progress is None else progress.flow_run_id


@contextmanager
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="isoflop-benchmark-"))
    there = Bench(folder)
    try:
        ensure_tracking_db(there.state)
        there.isoflop("up")
        yield there
    finally:
        there.isoflop("down", "--force")
        shutil.rmtree(folder)


def law(N: float, D: float) -> float:
    """A loss surface for runs that nobody trains."""
    return 1.5 + 6.0 / N**0.3 + 20.0 / D**0.3


def pretend_finished(state: State, plan: Plan) -> None:
    """Enter every run of a plan in MLflow as a training would have left it."""
    from mlflow.entities import Metric, RunTag

    client = tracking.client(state.tracking_uri)
    experiment = tracking.ensure_experiment(state, plan.spec.name)
    for k, run in enumerate(plan.runs):
        loss = law(run.N, run.D) * (1 + 1e-3 * math.sin(7.0 * k))
        values = {
            "loss": loss,
            "train_loss": loss,
            "bpb": loss / math.log(2),
            "epochs": 0.5,
            "wall_time_s": run.estimated_s,
            "step_time_s": 0.01,
            "tokens_per_s": 6400.0,
            "memory_bytes": 5e8,
        }
        now = time.time_ns() // 1_000_000
        run_id = client.create_run(experiment, run_name=run.name).info.run_id
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, run.spec.steps) for key, value in values.items()],
            tags=[RunTag(key, value) for key, value in {**run.tags, "isoflop.device": "cpu"}.items()],
        )
        client.set_terminated(run_id, "FINISHED")


def cached(there: Bench) -> list[Row]:
    """A thousand finished runs: to the report, and a run."""
    plan = there.plan(THOUSAND)
    pretend_finished(there.state, plan)
    took = there.sweep(THOUSAND)
    count = len(plan.runs)
    training = took["gathering"] - took["training"]
    return [
        Row(
            what=f"{count} finished runs, command to report",
            value=took["exit"],
            unit="s",
            target="<= 60",
            note=", ".join(f"{stage} at {seconds:.1f}" for stage, seconds in took.items()),
        ),
        Row(what="overhead of a cached run", value=training / count, unit="s a run", target="<= 0.5"),
    ]


def new(there: Bench) -> list[Row]:
    """Fresh runs, one at a time: the stage of training less the trainings."""
    took = there.sweep(NEW)
    runs = pl.read_parquet(there.state.sweep_dir("new") / "runs.parquet")
    stage, trained = took["gathering"] - took["training"], float(runs["wall_time_s"].sum())
    return [
        Row(
            what="overhead of a new run",
            value=(stage - trained) / runs.height,
            unit="s a run",
            target="<= 1.5",
            note=f"{runs.height} runs, {stage:.1f} s of which {trained:.1f} s are training;"
            " imports of the launcher, once a sweep, included",
        )
    ]


def write(folder: Path, tracking_uri: str, number: int, ready: Any, go: Any, out: Any) -> None:
    """A process that logs as a training does, and does nothing else."""
    from xlstm.config import TransformerConfig
    from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
    from xlstm.training import tracking as training_tracking
    from xlstm.training.job import TrainJob

    training_tracking.FLUSH_EVERY_S = 1.0  # fifteen times as often as a training does
    spec = RunSpec(
        model=TransformerConfig(vocab_size=256, d_model=16, num_blocks=1, num_heads=2, ffn_dim=32),
        data=DataSpec(name="none", tokenizer="bytes", content_hash="0"),
        optimizer=OptimizerSpec(peak_lr=1e-3, warmup_steps=4, cooldown_steps=4),
        context_length=16,
        batch_size=4,
        steps=STEPS,
        validation_tokens=320,
        validation_every=10,
        seed=number,
    )
    job = TrainJob(
        spec=spec,
        data_folder=folder,
        run_dir=folder / f"run-{number}-{os.getpid()}",
        tracking_uri=tracking_uri,
        experiment="writers",
        run_name=f"writer-{number}",
    )
    job.run_dir.mkdir()
    training_tracking.MlflowClient(tracking_uri).search_experiments()  # imports and connection
    ready.release()
    go.wait()
    started = time.monotonic()
    tracker = training_tracking.Tracker.start(job, {})
    for step in range(1, STEPS + 1):
        time.sleep(STEP_S)
        tracker.log(step, {"train_loss": 1.0 / step, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_s": 1e3})
    tracker.finish({"loss": 1.0}, [])
    out.put((tracker.run_id, time.monotonic() - started))


def write_together(there: Bench, count: int) -> tuple[list[str], list[float]]:
    """Run ids and seconds of `count` writers that begin at the same moment."""
    context = multiprocessing.get_context("spawn")
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    arguments = (there.folder, there.state.tracking_uri)
    writers = [context.Process(target=write, args=(*arguments, k, ready, go, out)) for k in range(count)]
    for writer in writers:
        writer.start()
    for _ in writers:
        ready.acquire()
    go.set()
    said = [out.get() for _ in writers]
    for writer in writers:
        writer.join()
    return [run_id for run_id, _ in said], [seconds for _, seconds in said]


def writers(there: Bench) -> list[Row]:
    """Eight processes that log at once, against one alone: time, and metrics that arrive."""
    tracking.ensure_experiment(there.state, "writers")
    client = tracking.client(there.state.tracking_uri)
    _, (alone,) = write_together(there, 1)
    ids, together = write_together(there, WRITERS)
    found = sum(
        len(client.get_metric_history(run_id, key))
        for run_id in ids
        for key in ("train_loss", "grad_norm", "lr", "tokens_per_s", "loss")
    )
    sent = WRITERS * (4 * STEPS + 1)
    return [
        Row(what=f"metrics lost of {sent:,} by {WRITERS} writers", value=sent - found, unit="", target="0"),
        Row(
            what=f"slowest of {WRITERS} writers over one alone",
            value=max(together) / alone,
            unit="x",
            target="<= 1.3",
            note=f"{alone:.1f} s alone, {max(together):.1f} s together, {STEPS} steps",
        ),
    ]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {"writers": writers, "new": new, "cached": cached}


def main() -> None:
    """Print the table; JSON beside it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, may be given again")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there too")
    options = parser.parse_args()
    with bench() as there:
        load = os.getloadavg()[0]
        rows = [row for name in options.only or PARTS for row in PARTS[name](there)]
    print(f"{os.cpu_count()} cores, load {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end\n")
    print("| measured | value | target | |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.value:.3g} {row.unit} | {row.target} | {row.note} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
