"""A sweep of tiny models as the flow runs it, without Prefect: the same plan, ledger, trainer and table.

`python tests/faults/sweep.py HOME SPEC` is a flow of its own, to be killed.
"""

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import polars as pl

from sweeps.gather import gather
from sweeps.plan import Plan, PlannedRun
from tasks import preparation, tracking
from tasks.engines import place
from tasks.launcher import Launcher
from tasks.state import State, open_state
from tasks.training import Engine, Hearing, Outcome, Trainer
from xlstm.data import Corpus

SABOTEUR = (sys.executable, str(Path(__file__).with_name("saboteur.py")))
COMPARED = ("run_key", "status", "loss", "train_loss", "bpb", "epochs", "N", "D", "train_flops", "budget")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A planned sweep in a state folder."""

    state: State
    plan: Plan
    corpus: Corpus

    @classmethod
    def of(cls, state: State, spec_file: Path) -> "Sweep":
        spec = preparation.read_spec(spec_file)
        corpus = preparation.prepare_data(spec, state)
        (state.home / "sabotage").mkdir(exist_ok=True)
        return cls(state=state, corpus=corpus, plan=preparation.plan_runs(spec, corpus))

    def train(
        self,
        launch: Callable[[], AbstractContextManager[Engine]],
        hearing: Hearing | None = None,
    ) -> dict[str, Outcome]:
        """One start of the flow: by run key, what became of every run."""
        spec = self.plan.spec
        there = place(spec.resources, self.state)
        with (
            ThreadPoolExecutor(there.at_once) as threads,
            Trainer(spec, self.state, self.corpus, there.room, launch=launch, hearing=hearing) as trainer,
        ):
            outcomes = list(threads.map(trainer.complete, self.plan.runs))
        return {run.run_key: outcome for run, outcome in zip(self.plan.runs, outcomes, strict=True)}

    def table(self) -> pl.DataFrame:
        """The run table, of what a fault must not change."""
        return gather(self.plan.table, self.state.tracking_uri).select(COMPARED).sort("run_key")

    def tracked(self) -> list[Any]:
        """Every attempt in MLflow."""
        client = tracking.client(self.state.tracking_uri)
        experiment = client.get_experiment_by_name(self.plan.spec.name)
        found = [] if experiment is None else client.search_runs([experiment.experiment_id])
        return [run for run in found if tracking.RUN_KEY in run.data.tags]  # and not the report

    def finished(self) -> dict[str, list[str]]:
        """By run key, the ids of its finished MLflow runs."""
        found: dict[str, list[str]] = {run.run_key: [] for run in self.plan.runs}
        for run in self.tracked():
            if run.info.status == "FINISHED":
                found[run.data.tags[tracking.RUN_KEY]].append(run.info.run_id)
        return found

    def history(self, run_id: str, key: str = "train_loss") -> list[tuple[int, float]]:
        """The points of a metric by step."""
        points = tracking.client(self.state.tracking_uri).get_metric_history(run_id, key)
        return sorted((point.step, point.value) for point in points)

    def forget(self) -> None:
        """Delete all runs, in MLflow and on disk, so that the next sweep trains them again."""
        client = tracking.client(self.state.tracking_uri)
        for run in self.tracked():
            client.delete_run(run.info.run_id)
        for run in self.plan.runs:
            shutil.rmtree(self.state.run_dir(run.run_key), ignore_errors=True)
        for leftover in (self.state.home / "sabotage").iterdir():
            leftover.unlink()

    def database_faults(self) -> list[str]:
        """SQLite's own word on every database of the state folder."""
        faults = []
        for path in (self.state.tracking_db, *self.state.prefect_home.glob("*.db")):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
                verdict = database.execute("PRAGMA integrity_check").fetchall()
            faults += [f"{path.name}: {row[0]}" for row in verdict if row[0] != "ok"]
        return faults

    def run_named(self, run_key: str) -> PlannedRun:
        (run,) = [run for run in self.plan.runs if run.run_key == run_key]
        return run


def main(home: str, spec_file: str) -> None:
    """A flow that somebody may kill."""
    sweep = Sweep.of(open_state(Path(home)), Path(spec_file))
    print(os.getpid(), flush=True)
    sweep.train(lambda: Launcher(SABOTEUR))


if __name__ == "__main__":
    main(*sys.argv[1:])
