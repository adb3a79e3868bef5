"""Profiles: those that are shipped, and faults that are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.capability.fields import CapabilityError
from sweeps.capability.plan import CLOSE, plan_suite, sized_config
from sweeps.capability.spec import PROFILES, CapabilitySpec, Size, TextSource, load_suite, parse_suite
from xlstm.accounting import count_parameters
from xlstm.capability.task import Task
from xlstm.capability.text import Domain
from xlstm.run_spec import canonical_json, run_spec_from_dict

DOMAINS = (Domain(name="python", content_hash="a" * 64), Domain(name="headers", content_hash="b" * 64))


def fields(**changed: Any) -> dict[str, Any]:
    """A small suite."""
    entry: dict[str, Any] = {
        "task": {"kind": "parity", "trained": 8, "measured": [8, 16]},
        "size": {"parameters": 10_000},
        "recipe": {"steps": 10, "batch_size": 4, "peak_lr": 0.01},
    }
    entry |= changed.pop("entry", {})
    return {
        "name": "small",
        "archs": ["lstm", "slstm"],
        "seeds": [0, 1],
        "experiments": {"p": entry},
    } | changed


def runs_of(suite: CapabilitySpec) -> Any:
    return plan_suite(suite, {e.name: DOMAINS for e in suite.experiments})


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_shipped_profiles_have_every_experiment_and_equal_sizes(name: str) -> None:
    suite = load_suite(name)
    kinds = {"text" if isinstance(e.task, TextSource) else vars(e.task)["kind"] for e in suite.experiments}
    assert kinds == {"parity", "modular", "search", "recall", "text"}
    for experiment in suite.experiments:
        assert {"lstm", "transformer", "xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]"} <= set(experiment.archs)
        assert len(experiment.seeds) >= 3
        if isinstance(experiment.task, Task):
            assert experiment.task.trained in experiment.task.measured
        else:
            assert experiment.task.times >= 8
    by_experiment: dict[str, list[int]] = {}
    for run in runs_of(suite):
        by_experiment.setdefault(run.experiment, []).append(run.N)
    for sizes in by_experiment.values():
        assert max(sizes) / min(sizes) < 1.06


def test_a_plan_holds_every_arch_rate_and_seed_once() -> None:
    entry = {"recipe": {"steps": 10, "batch_size": 4, "peak_lr": {"lstm": [0.01, 0.03], "all": 0.002}}}
    runs = runs_of(parse_suite(fields(entry=entry)))
    found = sorted((run.arch, run.spec.optimizer.peak_lr, run.spec.seed) for run in runs)
    expected = [("lstm", 0.01), ("lstm", 0.03), ("xlstm[0:1]", 0.002)]
    assert found == [(arch, rate, seed) for arch, rate in expected for seed in (0, 1)]
    assert len({run.spec.run_key for run in runs}) == len(runs)


def test_run_specs_survive_json() -> None:
    for run in runs_of(load_suite("quick")):
        again = run_spec_from_dict(json.loads(canonical_json(run.spec)))
        assert again == run.spec
        assert again.run_key == run.spec.run_key


def test_keys_depend_on_the_task_and_on_nothing_that_is_shown() -> None:
    """The name and the description of a suite decide nothing; what is measured does."""
    keys = [run.spec.run_key for run in runs_of(parse_suite(fields()))]
    renamed = parse_suite(fields(name="other", description="another", level=0.9, resources={"threads": 2}))
    assert [run.spec.run_key for run in runs_of(renamed)] == keys
    task = {"kind": "parity", "trained": 8, "measured": [8, 32]}
    assert not set(keys) & {run.spec.run_key for run in runs_of(parse_suite(fields(entry={"task": task})))}


def test_ordinary_runs_keep_their_keys() -> None:
    """A RunSpec without a task says nothing of tasks."""
    run = runs_of(parse_suite(fields()))[0]
    assert "task" not in json.loads(canonical_json(replace(run.spec, task=None)))


@pytest.mark.parametrize("arch", ["lstm", "transformer", "mlstm", "xlstm[0:1]", "xlstm[1:1]"])
@pytest.mark.parametrize("parameters", [20_000, 100_000])
def test_models_come_near_the_wanted_size(arch: str, parameters: int) -> None:
    config = sized_config(arch, Size(parameters=parameters), 32)
    assert abs(count_parameters(config) / parameters - 1) < (0.15 if arch == "lstm" else CLOSE)


def test_a_size_that_no_width_reaches_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"size.parameters = 500: the nearest has"):
        sized_config("xlstm[1:0]", Size(parameters=500, tolerance=0.01), 256)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"entry": {"recipe": {"steps": 10, "batch_size": 4}}}, "recipe.peak_lr: required and missing"),
        ({"entry": {"recipe": {"steps": 0, "batch_size": 4, "peak_lr": 0.1}}}, "steps = 0: must be positive"),
        (
            {"entry": {"recipe": {"steps": "9", "batch_size": 4, "peak_lr": 0.1}}},
            "steps = '9': must be of type int",
        ),
        (
            {"entry": {"recipe": {"steps": 9, "batch_size": 4, "peak_lr": {"lstm": 0.1}}}},
            "by architecture with all",
        ),
        ({"entry": {"task": {"kind": "parities"}}}, "task.kind = 'parities': use one of parity"),
        ({"entry": {"task": {"kind": "parity", "traind": 3}}}, "task.traind: unknown key of parity"),
        ({"entry": {"task": {"kind": "parity", "trained": 0, "measured": [4]}}}, "Parity.trained = 0"),
        ({"entry": {"archs": ["gru"]}}, "experiments.p.archs: "),
        ({"archs": ["slstm", "xlstm[0:1]"]}, "xlstm[0:1] stands there twice"),
        ({"archs": []}, "archs: is empty"),
        ({"seeds": 3}, "seeds = 3: must be a list"),
        ({"level": 2.0}, "level = 2.0: must lie between 0 and 1"),
        ({"experiment": {}}, "experiment: unknown key; did you mean experiments?"),
    ],
)
def test_faults_are_one_line_that_names_the_key(given: dict[str, Any], words: str) -> None:
    with pytest.raises(CapabilityError) as refusal:
        parse_suite(fields(**given), origin="mine.yaml")
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("mine.yaml")
    assert "\n" not in str(refusal.value)


def test_unknown_profiles_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"profile 'quik': not known; use one of gpu, quick"):
        load_suite("quik")
    with pytest.raises(CapabilityError, match="no such file"):
        load_suite(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("- 1\n")
    with pytest.raises(CapabilityError, match="holds list, not a mapping"):
        load_suite(tmp_path / "mine.yaml")


def test_overrides_reach_every_level() -> None:
    suite = load_suite("quick", {"seeds": [7], "experiments.parity.recipe.steps": 3})
    parity = next(e for e in suite.experiments if e.name == "parity")
    assert (parity.seeds, parity.recipe.steps) == ((7,), 3)
    with pytest.raises(CapabilityError, match=r"override seeds\.x: there is no such section"):
        load_suite("quick", {"seeds.x": 1})
