"""What the benchmark of several GPUs plans and counts."""

import itertools
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.multi_gpu import ROWS, Row, Tail, cases, job_of
from benchmarks.multi_gpu_rooms import PARTS, parts, watched
from benchmarks.multi_gpu_sweep import QUICK, RUNS, SPEC, WARM_UP, ended, tracked
from sweeps.plan import make_plan
from sweeps.spec_files import parse_spec
from tasks.devices import Gpu, Machine, Need
from tasks.leases import Ledger
from tasks.placement import Entry
from xlstm.run_spec import DataSpec
from xlstm.training.job import TrainJob

COUNTER = itertools.count(1)


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


GPUS = tuple(Gpu(uuid=str(i), name="H200", memory_bytes=10**9) for i in range(2))
MACHINE = Machine(threads=8, memory_bytes=10**9, gpus=GPUS)
SMALL = Need(device="cuda", threads=1, memory_bytes=1, gpu_share=0.25, expected_s=60)
LONG = replace(SMALL, expected_s=90)
LARGE = Need(device="cuda", threads=2, memory_bytes=1, gpu_share=1.0, devices=2, expected_s=60)


def entry(need: Need, *gpus: str) -> Entry:
    return Entry(since=next(COUNTER), need=need, granted=bool(gpus), gpus=gpus)


@pytest.mark.parametrize(
    ("entries", "more", "expected"),
    [
        ([], False, {"nobody": 1}),
        ([], True, {"missed": 1}),
        ([entry(LARGE, "0", "1")], True, {"used": 1}),
        ([entry(SMALL, "0")], False, {"used": 1 / 8, "nobody": 7 / 8}),
        ([entry(SMALL, "0"), entry(LARGE)], False, {"used": 1 / 8, "kept": 7 / 8}),
        ([entry(SMALL, "0"), entry(LARGE), entry(LONG)], False, {"used": 1 / 8, "kept": 7 / 8}),
        ([entry(SMALL, "0"), entry(LARGE), entry(SMALL)], False, {"used": 1 / 8, "missed": 7 / 8}),
        ([entry(SMALL, "0"), entry(SMALL)], False, {"used": 1 / 8, "missed": 7 / 8}),
        ([entry(LARGE, "0", "1"), entry(SMALL)], False, {"used": 1}),
    ],
)
def test_a_gpu_is_used_kept_missed_or_wanted_by_nobody(
    entries: list[Entry], more: bool, expected: dict[str, float]
) -> None:
    found = parts(entries, MACHINE, 0, more=more)
    assert sum(found.values()) == pytest.approx(1)
    assert {part: share for part, share in found.items() if share} == expected


def test_what_gpus_are_handed_out_to_is_watched(tmp_path: Path) -> None:
    ledger, left = Ledger(tmp_path, MACHINE), [LARGE]
    with watched(ledger, lambda: bool(left), tmp_path / "gpus.json"):
        time.sleep(0.3)  # before the first grant nothing counts
        with ledger.take(SMALL):
            time.sleep(0.5)
            left.clear()
            time.sleep(0.5)
        time.sleep(0.3)
    found = json.loads((tmp_path / "gpus.json").read_text())
    assert list(found) == list(PARTS)
    assert found == pytest.approx({"used": 1 / 8, "kept": 0, "missed": 7 / 16, "nobody": 7 / 16}, abs=0.2)
    assert found["used"] == pytest.approx(1 / 8)


def test_a_watch_that_fails_leaves_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, MACHINE)
    monkeypatch.setattr(ledger, "held", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), watched(ledger, lambda: False, tmp_path / "gpus.json"):
        time.sleep(0.3)
    assert not (tmp_path / "gpus.json").exists()
