"""The grid and the plan: budgets met, sizes chosen, keys stable."""

import json
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.grid import peak_learning_rate, sizes_around, steps_for
from sweeps.plan import Plan, make_plan
from sweeps.spec import LearningRate, SpecError
from sweeps.spec_files import load_spec, parse_spec
from tests.sweeps.test_spec import MINIMAL
from xlstm.accounting import count_parameters, training_flops, transformer_config
from xlstm.run_spec import DataSpec, canonical_json, run_spec_from_dict

DATA = DataSpec(name="corpus", tokenizer="bytes", content_hash="0" * 64)


def plan_of(profile: str) -> Plan:
    return make_plan(load_spec(profile), DATA, vocab_size=VOCABULARIES[profile])


VOCABULARIES = {"quick": 256, "gpu": 8_192, "fineweb": 16_384}


@pytest.mark.parametrize("profile", sorted(VOCABULARIES))
def test_every_planned_run_meets_its_budget(profile: str) -> None:
    for run in plan_of(profile).runs:
        flops = training_flops(run.spec.model, run.spec.context_length, run.spec.tokens)
        assert abs(flops / run.budget - 1) <= load_spec(profile).steps.tolerance
        assert run.spec.steps * run.spec.batch_size * run.spec.context_length == run.D
        assert count_parameters(run.spec.model) == run.N


def test_quick_covers_what_it_promises() -> None:
    spec, table = load_spec("quick"), plan_of("quick").table
    assert len(spec.budgets) >= 3
    assert max(spec.budgets) / min(spec.budgets) >= 10
    sizes = table.group_by("arch", "budget").agg(pl.col("N").n_unique())
    assert set(table["arch"]) == {"mlstm", "transformer"}
    assert sizes["N"].min() >= 5


def test_gpu_is_a_whole_sweep_in_little_time() -> None:
    """Four budgets over a factor of thirty, six sizes of each architecture, and a hold-out at three times."""
    spec, plan = load_spec("gpu"), plan_of("gpu")
    assert len(spec.budgets) >= 4
    assert max(spec.budgets) / min(spec.budgets) >= 29.99
    sizes = plan.table.group_by("arch", "budget").agg(pl.col("N").n_unique())
    assert sizes["N"].min() >= 6
    assert spec.holdout_budget(512) == 3 * max(spec.budgets)
    assert plan.train_flops < 1e14 * 900  # a quarter of an hour at a tenth of an H100's peak
    assert plan.table["D"].max() < 2.5 * 102e6  # tokens of the corpus it was planned for


def test_fineweb_sizes_span_10M_to_400M() -> None:
    table = plan_of("fineweb").table
    assert table["N"].min() < 20e6
    assert 350e6 < table["N"].max() < 450e6


def test_cheap_budgets_come_first_and_three_points_of_a_parabola_early() -> None:
    table = plan_of("quick").table
    assert table["budget"].is_sorted()
    for _, group in table.group_by("arch", "budget", maintain_order=True):
        first_three = group["N"].head(3).to_list()
        assert {group["N"].min(), group["N"].max()} <= set(first_three)


def test_run_keys_are_stable_across_processes_and_field_order() -> None:
    spec = plan_of("quick").runs[0].spec
    code = (
        "import json,sys; from xlstm.run_spec import run_spec_from_dict;"
        "print(run_spec_from_dict(json.load(sys.stdin)).run_key)"
    )
    shuffled = dict(reversed(list(json.loads(canonical_json(spec)).items())))
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(shuffled), capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == spec.run_key
    assert run_spec_from_dict(json.loads(canonical_json(spec))) == spec


def test_run_key_of_a_known_spec_never_changes() -> None:
    """A change here retrains every run of every user: raise TRAINING_VERSION and say so instead."""
    from tests.sweeps.golden import GOLDEN_RUN_KEY, GOLDEN_SPEC

    assert GOLDEN_SPEC.run_key == GOLDEN_RUN_KEY


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 7}, {"precision": "bf16"}, {"batch_size": 3}])
def test_whatever_determines_a_run_changes_its_key(change: dict) -> None:
    spec = plan_of("quick").runs[0].spec
    assert replace(spec, **change).run_key != spec.run_key


def test_two_sweeps_share_runs() -> None:
    """The sweep's name and its resources are not part of a run."""
    spec = load_spec("quick")
    again = spec.model_copy(update={"name": "other", "budgets": spec.budgets[:1]})
    keys = {run.run_key for run in make_plan(spec, DATA, 256).runs}
    assert {run.run_key for run in make_plan(again, DATA, 256).runs} <= keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": [1e7]}, "take a smaller size, a smaller batch or a larger budget"),
        (
            {"ladder": {"shapes": [{"d_model": 10, "num_blocks": 1, "num_heads": 4}]}},
            "d_model 10 does not fit mlstm",
        ),
        ({"resources": {"memory_gib": 1e-6}}, "resources.memory_gib is 1e-06; drop the size"),
        ({"learning_rate": {"by_width": {8: 0.01}}}, "no entry covers d_model 16; add one for a width >= 16"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, message: str) -> None:
    spec = parse_spec({**MINIMAL, **change})
    with pytest.raises(SpecError) as error:
        make_plan(spec, DATA, vocab_size=256)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(
    budget=st.floats(1e9, 1e15),
    width=st.sampled_from([16, 32, 64]),
    batch_size=st.integers(1, 16),
)
def test_steps_meet_the_budget_or_say_why_not(budget: float, width: int, batch_size: int) -> None:
    spec = parse_spec(MINIMAL)
    config = transformer_config(vocab_size=256, d_model=width, num_blocks=2, num_heads=2)
    per_step = training_flops(config, 64, batch_size * 64)
    if abs(max(1, round(budget / per_step)) * per_step / budget - 1) > spec.steps.tolerance:
        with pytest.raises(SpecError, match="off budget"):
            steps_for(spec, budget, config, 64, batch_size)
    else:
        steps = steps_for(spec, budget, config, 64, batch_size)
        assert steps == max(1, round(budget / per_step))


@given(count=st.integers(1, 9), center=st.floats(1e3, 1e8), spread=st.floats(1.5, 100))
def test_sizes_are_distinct_ordered_and_as_many_as_asked(count: int, center: float, spread: float) -> None:
    configs = [
        transformer_config(vocab_size=256, d_model=16 * k, num_blocks=2, num_heads=2) for k in range(1, 10)
    ]
    chosen = sizes_around(configs, center, spread, count)
    sizes = [count_parameters(config) for config in chosen]
    assert len(chosen) == count
    assert sizes == sorted(set(sizes))


def test_learning_rate_rules() -> None:
    power = LearningRate(base=0.01, reference_width=32, exponent=0.5, maximum=0.012)
    assert peak_learning_rate(power, 128) == pytest.approx(0.005)
    assert peak_learning_rate(power, 8) == 0.012
    table = LearningRate(by_width={1024: 3e-3, 1792: 1e-3})
    assert peak_learning_rate(table, 640) == 3e-3
    assert peak_learning_rate(table, 1025) == 1e-3
