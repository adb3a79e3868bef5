"""What a follower learns of a sweep."""

import json
import time

import pytest

from sweeps.plan import Plan, make_plan
from sweeps.spec_files import parse_spec
from tasks.progress import ProgressWriter, Training, read_progress, read_trainings, time_left_s
from tasks.state import State
from xlstm.run_spec import DataSpec


@pytest.fixture
def plan() -> Plan:
    spec = parse_spec(
        {
            "name": "tiny",
            "archs": ["transformer"],
            "context_lengths": [32],
            "budgets": [2e8, 4e8],
            "ladder": {"shapes": [{"d_model": d, "num_blocks": 1, "num_heads": 1} for d in (8, 16)]},
            "learning_rate": {"base": 0.01},
            "batch": {"tokens": 64},
        }
    )
    return make_plan(spec, DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64), 256)


def training(eta_s: float | None) -> Training:
    return Training(name="run", step=1, steps=10, loss=2.0, tokens_per_s=100.0, eta_s=eta_s)


def test_nothing_is_known_before_the_flow_speaks(state: State) -> None:
    assert read_progress(state, "tiny") is None


def test_a_follower_sees_what_the_flow_and_the_trainings_say(state: State, plan: Plan) -> None:
    writer = ProgressWriter(state, "tiny", "flow")
    writer.plan(plan.runs, slots=2)
    first, second, third, fourth = (run.run_key for run in plan.runs)
    writer.run(first, "running")
    writer.run(first, "finished")
    writer.run(second, "cached")
    writer.run(third, "running")
    writer.run(third, "failed", "out of memory")
    writer.run(fourth, "running")
    state.run_dir(fourth).mkdir()
    said = {"step": 3, "steps": 9, "loss": 2.5, "tokens_per_s": 1e4, "eta_s": 1.5, "started_at": time.time()}
    (state.run_dir(fourth) / "progress.json").write_text(json.dumps(said))
    progress = read_progress(state, "tiny")
    assert progress is not None
    assert [progress.count(s) for s in ("finished", "cached", "failed", "running", "queued")] == [
        1,
        1,
        1,
        1,
        0,
    ]
    assert progress.runs[2].error == "out of memory"
    (running,) = read_trainings(state, progress)
    assert (running.name, running.step, running.loss) == (plan.runs[3].name, 3, 2.5)


def test_an_earlier_attempt_does_not_speak_for_this_one(state: State, plan: Plan) -> None:
    key = plan.runs[0].run_key
    state.run_dir(key).mkdir()
    (state.run_dir(key) / "progress.json").write_text('{"step": 99, "steps": 100}')
    time.sleep(0.05)
    writer = ProgressWriter(state, "tiny", "flow")
    writer.plan(plan.runs, slots=1)
    writer.run(key, "running")
    progress = read_progress(state, "tiny")
    assert progress is not None
    assert read_trainings(state, progress)[0].step == 0


def test_the_time_left_follows_the_runs_that_are_done(state: State, plan: Plan) -> None:
    writer = ProgressWriter(state, "tiny", "flow")
    writer.plan(plan.runs, slots=2)
    progress = read_progress(state, "tiny")
    assert progress is not None
    assert time_left_s(progress, []) is None
    done, *queued = progress.runs
    done.status, done.wall_time_s = "finished", 3 * done.estimated_s
    first, second, third = (3 * run.estimated_s for run in queued)
    assert time_left_s(progress, []) == pytest.approx(max(min(first, second) + third, first, second))
    queued[0].status = "running"
    said = Training(name=queued[0].name, step=1, steps=9, loss=2.0, tokens_per_s=1.0, eta_s=1e6)
    assert time_left_s(progress, [said]) == pytest.approx(max(1e6, second + third))
