"""`isoflop compare` as its user meets it: names, folders, tables, and what is said when one is missing."""

import json
from pathlib import Path

import polars as pl
import pytest

from sweeps.laws import LawSettings
from sweeps.run_table import complete
from tasks.comparing import compare
from tasks.errors import UserError
from tasks.state import State, open_state
from tests.sweeps.test_comparing import sweep

SETTINGS = LawSettings(resamples=20)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    return open_state()


def put(state: State, name: str, runs: pl.DataFrame, /, **facts: object) -> Path:
    folder = state.sweep_dir(name)
    folder.mkdir(parents=True)
    complete(runs).write_parquet(folder / "runs.parquet")
    (folder / "corpus.json").write_text(json.dumps({"tokenizer": "bytes", "hash": "abc", **facts}))
    return folder


def test_two_sweeps_by_name(state: State, tmp_path: Path):
    put(state, "old", sweep(1))
    put(state, "new", sweep(2, factor=0.97))
    done = compare("old", "new", SETTINGS, state, out=tmp_path / "out", command="isoflop compare old new")
    assert done.report == tmp_path / "out" / "comparison.html"
    page = done.report.read_text(encoding="utf-8")
    assert "new follows another law than old for the Transformer at context 128." in done.text
    assert "nats per byte below that of old" in done.text
    assert "isoflop compare old new" in page
    assert "differ in" not in page


def test_other_text_is_said_first_and_worth_no_compute(state: State, tmp_path: Path):
    put(state, "old", sweep(1))
    folder = put(state, "new", sweep(2, factor=0.97), hash="def")
    done = compare("old", str(folder), SETTINGS, state, out=tmp_path / "out")
    caution, verdict, *_ = done.text.splitlines()
    assert caution.startswith("The sweeps differ in content hash: their losses are of different texts")
    assert verdict.startswith("By losses on different data: new follows another law")
    page = done.report.read_text(encoding="utf-8")
    assert page.index("The sweeps differ in content hash") < page.index("By losses on different data")
    for text in (done.text, page):
        assert "times the compute" not in text
        assert "Worth in compute" not in text


def test_the_same_text_by_another_name_is_the_same(state: State, tmp_path: Path):
    put(state, "old", sweep(1), name="python")
    put(state, "new", sweep(2), name="poems")
    assert "differ in" not in compare("old", "new", SETTINGS, state, out=tmp_path / "out").text


def test_a_run_table_has_no_known_text(state: State, tmp_path: Path):
    put(state, "old", sweep(1))
    table = tmp_path / "theirs.csv"
    sweep(1).select("arch", "context_length", "budget", "N", "D", "loss").write_csv(table)
    done = compare("old", str(table), SETTINGS, state, out=tmp_path / "out")
    caution, verdict, *_ = done.text.splitlines()
    assert "not recorded for both" in caution
    assert verdict == "Nothing says that theirs follows another law than old."


def test_an_unknown_sweep_is_named_with_those_there_are(state: State):
    put(state, "old", sweep(1))
    with pytest.raises(UserError, match=r"gone: is neither a sweep with gathered runs \(old\)"):
        compare("old", "gone", SETTINGS, state)


def test_a_sweep_against_itself(state: State, tmp_path: Path):
    put(state, "one", sweep(1))
    done = compare("one", "one", SETTINGS, state, out=tmp_path / "out")
    assert "one (second)" in done.text
