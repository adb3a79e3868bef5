"""Profiles, overrides and plans."""

import json
from pathlib import Path

import polars as pl
import pytest

from sweeps.spec import SpecError
from tasks.preparation import (
    parse_override,
    plan_runs,
    prepare_data,
    read_spec,
    repetition,
    save_plan,
    view_plan,
)
from tasks.state import State
from xlstm.data import CorpusError


@pytest.mark.parametrize("profile", ["quick", "gpu", "paper", "paper-large"])
def test_shipped_profiles_are_read(profile: str) -> None:
    assert read_spec(profile).name == profile


def test_overrides_reach_into_sections() -> None:
    changes = dict(
        parse_override(text)
        for text in ("budgets=[1e10, 2e10]", "resources.threads=2", "data.tokenizer=bpe:512", "name=mine")
    )
    spec = read_spec("quick", changes)
    assert spec.budgets == [1e10, 2e10]
    assert (spec.resources.threads, spec.data.tokenizer, spec.name) == (2, "bpe:512", "mine")
    assert spec.ladder == read_spec("quick").ladder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("threads", "override 'threads': write key=value, as resources.threads=2"),
        ("budgets=[1", "override 'budgets=[1': the value is not YAML"),
        ("name.first=x", "override name.first: there is no such section"),
        ("resources.cores=2", "quick with overrides: resources.cores: unknown key"),
        ("budgets=[-1]", "quick with overrides: budgets.0 = -1: Input should be greater than 0"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        read_spec("quick", dict([parse_override(override)]))
    assert str(error.value).startswith(message)


def test_a_plan_is_saved_with_its_spec_and_the_facts_of_its_corpus(tracked: State) -> None:
    spec = read_spec("quick", {"name": "mine", "data.max_bytes": 2_000_000, "data.name": "small"})
    corpus = prepare_data(spec, tracked)
    plan = plan_runs(spec, corpus)
    save_plan(plan, corpus, tracked)
    folder = tracked.sweep_dir("mine")
    assert pl.read_parquet(folder / "plan.parquet").equals(plan.table)
    assert read_spec(folder / "spec.yaml") == spec
    facts = json.loads((folder / "corpus.json").read_text())
    assert facts["hash"] == plan.runs[0].spec.data.content_hash
    assert 2.5 < facts["unigram_loss"] < 4.0
    view = view_plan(spec, tracked)
    assert len(view.rows) == len(plan.runs) == 30
    assert view.cached == 0


def test_ones_own_text_goes_by_its_folder_and_not_in_the_keys(tracked: State, tmp_path: Path) -> None:
    """Keys are those of sweeps of the same text from before it had a name of its own."""
    text = tmp_path / "poems"
    text.mkdir()
    for k in range(40):
        (text / f"{k}.txt").write_text(f"verse {k} " * 2000)
    data = {"source": "files", "paths": [str(text)], "validation_fraction": 0.5}
    changes = {"name": "own", **{f"data.{key}": value for key, value in data.items()}}
    spec = read_spec("quick", changes)
    corpus = prepare_data(spec, tracked)
    plan = plan_runs(spec, corpus)
    save_plan(plan, corpus, tracked)
    facts = json.loads((tracked.sweep_dir("own") / "corpus.json").read_text())
    assert (facts["name"], corpus.folder.name) == ("poems", "poems-bytes")
    assert view_plan(spec, tracked).corpus.startswith("poems, bytes: ")
    called_python = read_spec("quick", {**changes, "data.name": "python"})
    as_before = plan_runs(called_python, prepare_data(called_python, tracked))
    assert [run.run_key for run in as_before.runs] == [run.run_key for run in plan.runs]


def test_a_declared_vocabulary_is_planned_without_the_corpus(state: State) -> None:
    """The paper's grid is for GPUs and a data set of terabytes; its plan needs neither."""
    view = view_plan(read_spec("paper"), state)
    assert len(view.rows) == 679
    assert view.corpus == "dclm-baseline, gpt-neox-20b: not prepared; planned for a vocabulary of 50,304"
    assert not any(state.data.iterdir())


def test_a_declared_vocabulary_is_that_of_the_models(tracked: State) -> None:
    changes = {"data.max_bytes": 2_000_000, "data.name": "small", "data.vocab_size": 320}
    spec = read_spec("quick", changes)
    plan = plan_runs(spec, prepare_data(spec, tracked))
    assert {run.spec.model.vocab_size for run in plan.runs} == {320}
    assert "training tokens" in view_plan(spec, tracked).corpus
    spec = read_spec("quick", changes | {"data.vocab_size": 200})
    with pytest.raises(
        SpecError, match=r"data\.vocab_size = 200: the tokenizer has 25\d; give at least that many"
    ):
        plan_runs(spec, prepare_data(spec, tracked))


def test_a_plan_says_how_often_its_runs_go_through_their_text() -> None:
    plan = pl.DataFrame({"run_name": ["short", "long", "middle"], "D": [1000, 4000, 2000]})
    assert repetition(plan, 4000) == ""
    assert repetition(plan, 2000) == "; 1 of 3 runs repeat it, up to 2 epochs (long)"
    assert repetition(plan, 1000) == "; 2 of 3 runs repeat it, up to 4 epochs (long)"
    assert repetition(plan, 100) == (
        "\nwarning: 3 of 3 runs repeat it, up to 40 epochs (long); beyond 4, repeated tokens are worth less"
        " than new ones: give more text, or smaller budgets"
    )


def test_a_small_corpus_is_warned_of_before_anything_is_trained(tracked: State) -> None:
    view = view_plan(read_spec("quick", {"data.name": "small", "data.max_bytes": 2_000_000}), tracked)
    most = max(row["D"] for row in view.rows)
    assert f"up to {most / tokens_of(view.corpus):.3g} epochs" in view.corpus


def tokens_of(corpus: str) -> int:
    """The number of training tokens that the plan prints."""
    return int(corpus.split(": ")[1].split(" training")[0].replace(",", ""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.max_bytes": 100_000},
            r"^validation\.tokens = 65536: the validation split has \d+; ask for fewer",
        ),
        ({"validation.tokens": 100}, r"^validation\.tokens = 100 is less than one context of 128"),
    ],
)
def test_splits_that_are_too_small_are_told_by_the_plan(
    tracked: State, changes: dict[str, int], message: str
) -> None:
    spec = read_spec("quick", {"data.name": "too-small", "data.max_bytes": 2_000_000} | changes)
    with pytest.raises(CorpusError, match=message):
        plan_runs(spec, prepare_data(spec, tracked))
