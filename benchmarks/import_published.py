"""How long an import of published runs takes, stage by stage.

python -m benchmarks.import_published ../shared/data/paper --runs 700

The runs of the path that have curves are repeated under other names until there are as many as asked for, so
every one of them has a curve. The database is fresh, in a temporary folder.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from sweeps.published import PublishedStudy, read_published
from tasks.environment import enter
from tasks.import_tracking import write_runs
from tasks.state import open_state
from tasks.tracking_db import ensure_tracking_db


def repeated(study: PublishedStudy, count: int) -> PublishedStudy:
    """`count` runs with curves out of those of a study."""
    with_curve = study.runs.filter(pl.col("run_key").is_in(study.curves["run_key"].unique().to_list()))
    runs, curves = [], []
    for copy in range(-(-count // with_curve.height)):
        renamed = pl.col("run_key") + f"-{copy}"
        runs.append(with_curve.with_columns(renamed))
        curves.append(study.curves.with_columns(renamed))
    kept = pl.concat(runs).head(count)
    points = pl.concat(curves).join(kept.select("run_key"), on="run_key", how="semi")
    return replace(study, runs=kept, curves=points)


def timed(stages: list[dict[str, Any]], name: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    stages.append({"stage": name, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--runs", type=int, default=700)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stages: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        state = open_state(Path(folder) / "state")
        enter(state)
        study = timed(stages, f"read {options.path.name}", lambda: read_published(options.path))
        many = repeated(study, options.runs)
        timed(stages, "make MLflow's database", lambda: ensure_tracking_db(state))
        timed(stages, "import MLflow", lambda: __import__("mlflow.tracking"))

        def write() -> Any:
            return write_runs(many, state, "benchmark", (), lambda message, done, total: None)

        timed(stages, f"write {options.runs} runs", write)
        again = timed(stages, "write them again", write)
        assert again.unchanged == options.runs
    print(f"{options.runs} runs, {many.curves.height:,} points of their curves\n")
    print("| stage | wall s | CPU s |\n|---|---|---|")
    for stage in stages:
        print(f"| {stage['stage']} | {stage['wall_s']:.1f} | {stage['cpu_s']:.1f} |")
    if options.json:
        options.json.write_text(json.dumps({"runs": options.runs, "stages": stages}, indent=1))


if __name__ == "__main__":
    main()
