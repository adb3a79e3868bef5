"""What the benchmark of several GPUs plans and counts."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.multi_gpu import ROWS, Row, Tail, cases, job_of
from benchmarks.multi_gpu_sweep import QUICK, RUNS, SPEC, WARM_UP, ended, tracked
from sweeps.plan import make_plan
from sweeps.spec_files import parse_spec
from xlstm.run_spec import DataSpec
from xlstm.training.job import TrainJob


def test_a_sweep_of_forty_small_runs_of_like_size() -> None:
    data = DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64)
    runs = make_plan(parse_spec(SPEC), data, 256).runs
    assert len(runs) == RUNS == len({run.run_key for run in runs})
    assert max(run.N for run in runs) < 1e7
    assert max(run.train_flops for run in runs) < 1.1 * min(run.train_flops for run in runs)
    assert len(make_plan(parse_spec(QUICK), data, 256).runs) == 6


@pytest.mark.parametrize("spec", [SPEC, QUICK])
def test_the_warm_up_has_every_shape_once(spec: Row) -> None:
    """Its budget buys enough steps to be planned."""
    data = DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64)
    short = {**spec, "budgets": [C * WARM_UP for C in spec["budgets"]], "seeds": [0]}
    shapes = {run.spec.model for run in make_plan(parse_spec(spec), data, 256).runs}
    warmed = [run.spec.model for run in make_plan(parse_spec(short), data, 256).runs]
    assert len(warmed) == len(shapes)
    assert set(warmed) == shapes


def test_a_case_reaches_its_processes_whole(tmp_path: Path) -> None:
    for case in cases():
        job = job_of(case, ["cuda:0", "cuda:1"], tmp_path, alone=True)
        there = TrainJob.from_json(job.to_json())
        assert there.devices == ("cuda:0", "cuda:1")
        assert json.loads(there.tags["case"])["sequences"] == case.sequences


def test_rows_are_heard_once_and_whole(tmp_path: Path) -> None:
    heard: list[Row] = []
    with Tail(tmp_path / ROWS, heard.append), (tmp_path / ROWS).open("w") as file:
        for i in range(3):
            file.write(json.dumps({"row": i}) + "\n")
        file.write('{"row": ')
    assert heard == [{"row": 0}, {"row": 1}, {"row": 2}]


def test_finished_runs_are_counted_by_key(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("create table runs (run_uuid, status, lifecycle_stage)")
        database.execute("create table tags (run_uuid, key, value)")
        for run, status, stage in (
            ("a", "FINISHED", "active"),
            ("b", "FINISHED", "active"),
            ("c", "FAILED", "active"),
            ("d", "FINISHED", "deleted"),
        ):
            database.execute("insert into runs values (?, ?, ?)", (run, status, stage))
            database.execute("insert into tags values (?, 'isoflop.run_key', 'k')", (run,))
        database.commit()
    assert tracked(tmp_path) == {"k": ["a", "b"]}
    assert ended(tmp_path) == {"a", "b"}
