"""Plans of the schedule wsd: which runs share a path, from where each goes on, and what that saves."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.plan import Plan, branch_points, make_plan
from sweeps.spec import SpecError
from sweeps.spec_files import parse_spec
from tests.sweeps.test_plan import DATA
from tests.sweeps.test_spec import MINIMAL
from xlstm.run_spec import canonical_json, run_spec_from_dict
from xlstm.training.optimizer import learning_rate
from xlstm.trunk import branch_step, trunk_key

SHAPES = [{"d_model": d, "num_blocks": 1, "num_heads": 1} for d in (8, 16)]


def plan_of(schedule: dict[str, object], **changes: object) -> Plan:
    fields = {**MINIMAL, "ladder": {"shapes": SHAPES, "ffn_multiple_of": 8}, "budgets": [1e9, 3e9, 1e10]}
    return make_plan(parse_spec({**fields, "schedule": schedule, **changes}), DATA, 64)


def test_a_size_has_one_trunk_for_all_budgets_and_each_budget_begins_where_the_last_left_it() -> None:
    plan = plan_of({"kind": "wsd", "cooldown_fraction": 0.2})
    by_trunk: dict[str, list] = {}
    for run in plan.runs:
        by_trunk.setdefault(trunk_key(run.spec), []).append(run)
    assert len(by_trunk) == len(SHAPES) * 2
    for runs in by_trunk.values():
        assert [run.budget for run in runs] == [1e9, 3e9, 1e10]
        assert [run.begins_at for run in runs] == [0, *(branch_step(run.spec) for run in runs[:-1])]
        assert branch_points(plan.runs)[trunk_key(runs[0].spec)] == tuple(branch_step(r.spec) for r in runs)
    assert len({run.run_key for run in plan.runs}) == len(plan.runs)


def test_the_saving_is_what_the_steps_say() -> None:
    plan = plan_of({"kind": "wsd", "cooldown_fraction": 0.2})
    by_steps = sum(run.train_flops * (run.spec.steps - run.begins_at) / run.spec.steps for run in plan.runs)
    assert plan.spent_flops == pytest.approx(by_steps)
    assert plan.table["planned_spent_flops"].sum() == pytest.approx(by_steps)
    cosine = plan_of({"kind": "cosine"})
    assert cosine.spent_flops == cosine.train_flops
    assert plan.train_flops == pytest.approx(cosine.train_flops)
    assert plan.spent_flops < 0.85 * plan.train_flops


def test_a_batch_that_grows_with_the_budget_shares_nothing() -> None:
    with pytest.raises(SpecError, match=r"schedule.kind = wsd needs batch.exponent = 0"):
        plan_of({"kind": "wsd"}, batch={"tokens": 64, "reference_budget": 1e9, "exponent": 0.3})


def test_a_warm_up_that_leaves_no_steps_is_refused() -> None:
    with pytest.raises(SpecError, match=r"warmup_tokens_per_parameter = 500: warms .* leaves none"):
        plan_of({"kind": "wsd", "warmup_tokens_per_parameter": 500.0})


def test_a_spec_with_the_schedule_survives_json() -> None:
    spec = plan_of({"kind": "wsd"}).runs[0].spec
    assert '"schedule":"wsd"' in canonical_json(spec)
    assert run_spec_from_dict(json.loads(canonical_json(spec))) == spec


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cooldown=st.floats(0.0, 0.6), ratio=st.floats(0.01, 1.0))
def test_up_to_its_cool_down_every_run_of_a_trunk_has_the_same_rates(cooldown: float, ratio: float) -> None:
    plan = plan_of({"kind": "wsd", "cooldown_fraction": cooldown, "warmup_tokens_per_parameter": ratio})
    by_trunk: dict[str, list] = {}
    for run in plan.runs:
        by_trunk.setdefault(trunk_key(run.spec), []).append(run.spec)
    for specs in by_trunk.values():
        shared = min(branch_step(spec) for spec in specs)
        assert shared > 0
        rates = {tuple(learning_rate(i, s.steps, s.optimizer) for i in range(shared)) for s in specs}
        assert len(rates) == 1
        for spec in specs:
            first = learning_rate(branch_step(spec), spec.steps, spec.optimizer)
            assert first < spec.optimizer.peak_lr
