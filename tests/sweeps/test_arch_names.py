"""Stacks in sweeps by name: spec, plan, run keys, run tables, and what reports and trackers call them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reports.palette import arch_label, arch_order
from sweeps.plan import Plan, make_plan
from sweeps.run_models import config_of, serving_costs
from sweeps.spec import SpecError
from sweeps.spec_files import load_spec, parse_spec
from xlstm.accounting import count_parameters, training_flops
from xlstm.arch_names import arch_slug
from xlstm.run_spec import DataSpec, canonical_json, run_spec_from_dict

FIELDS: dict[str, Any] = {
    "name": "family",
    "archs": ["slstm", "xlstm[1:1]", "xlstm[@0]", "xlstm[2:2]-no-mixing", "xlstm[1:0]", "lstm", "mlstm"],
    "context_lengths": [32],
    "budgets": [1e9],
    "ladder": {
        "shapes": [
            {"d_model": 16, "num_blocks": 2, "num_heads": {"all": 2, "slstm": 4}},
            {"d_model": 16, "num_blocks": 4, "num_heads": 2, "archs": ["xlstm[1:1]", "xlstm[0:1]"]},
        ],
        "ffn_multiple_of": 8,
    },
    "learning_rate": {"all": {"base": 0.001}, "xlstm[0:2]": {"base": 0.002}},
    "batch": {"tokens": 64},
}


def plan(**change: Any) -> Plan:
    data = DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64)
    return make_plan(parse_spec({**FIELDS, **change}), data, 256)


def test_every_name_becomes_runs_of_its_own() -> None:
    runs = plan().runs
    assert [run.arch for run in runs].count("xlstm[0:1]") == 2
    assert {run.arch for run in runs} == {
        "xlstm[0:1]", "xlstm[1:1]", "xlstm[@0]", "xlstm[1:1]-no-mixing", "xlstm[1:0]", "lstm", "mlstm"
    }  # fmt: skip
    assert len({run.run_key for run in runs}) == len({run.name for run in runs}) == len(runs) == 9
    for run in runs:
        assert count_parameters(run.spec.model) == run.N
        assert run.train_flops == training_flops(run.spec.model, 32, run.D)
        assert run.train_flops == pytest.approx(1e9, rel=0.02)
        assert run_spec_from_dict(json.loads(canonical_json(run.spec))) == run.spec


def test_settings_by_architecture_know_its_other_names() -> None:
    first = next(run for run in plan().runs if run.name.startswith("xlstm[0:1]") and "16x2" in run.name)
    assert first.spec.model.num_heads == 4
    assert first.spec.optimizer.peak_lr == pytest.approx(0.002 * (1024 / 16) ** 0.5)


def test_switches_are_in_the_run_spec() -> None:
    ablated = next(run for run in plan().runs if run.arch.endswith("no-mixing"))
    fields = json.loads(canonical_json(ablated.spec))["model"]
    assert {k: fields[k] for k in ("gating", "memory_mixing", "normaliser", "gate_bias_init")} == {
        "gating": "exponential", "memory_mixing": False, "normaliser": True, "gate_bias_init": "spread"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archs": ["xlstm[3:1]"]}, "does not fit xlstm[3:1]: xlstm[3:1]: num_blocks = 2 must be"),
        ({"archs": ["xlstm[7;1]"]}, "archs.0 = 'xlstm[7;1]': arch 'xlstm[7;1]': is no architecture"),
        ({"learning_rate": {"xlstm[1:1]": {"base": 0.1}}}, "learning_rate has no entry for xlstm[0:1]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        plan(**change)
    assert message in str(error.value)


def test_brackets_without_quotes_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text("name: family\narchs: [mlstm, xlstm[7:1]]\n")
    with pytest.raises(SpecError, match=r"not valid YAML: .* names with brackets need quotes in a list"):
        load_spec(path)


def test_models_of_a_run_table_are_built_again() -> None:
    made = plan()
    table = made.table.with_columns(pl.lit("finished").alias("status"))
    for row, run in zip(table.iter_rows(named=True), made.runs, strict=True):
        assert config_of(row) == run.spec.model
    costs = serving_costs(table, 1e6)
    assert {arch for arch, _ in costs} == {run.arch for run in made.runs}


@pytest.mark.parametrize(
    ("arch", "label", "slug"),
    [
        ("mlstm", "mLSTM", "mlstm"),
        ("lstm", "LSTM", "lstm"),
        ("xlstm[7:1]", "xLSTM[7:1]", "xlstm-7-1"),
        ("xlstm[@1,3]-no-mixing", "xLSTM[@1,3] no mixing", "xlstm-at-1-3-no-mixing"),
        ("xlstm[1:0]-sigmoid-zero-bias", "xLSTM[1:0] sigmoid zero bias", "xlstm-1-0-sigmoid-zero-bias"),
        ("someone-elses", "someone-elses", "someone-elses"),
    ],
)  # fmt: skip
def test_names_for_people_and_for_files(arch: str, label: str, slug: str) -> None:
    assert arch_label(arch) == label
    assert arch_slug(arch) == slug


def test_known_architectures_come_first() -> None:
    assert arch_order(["xlstm[1:1]", "lstm", "mlstm", "xlstm[0:1]"]) == [
        "mlstm", "lstm", "xlstm[0:1]", "xlstm[1:1]"
    ]  # fmt: skip
