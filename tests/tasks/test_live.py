"""The live page: the plan fills up, the law comes and grows surer, failures are told, errors do no harm."""

import contextvars
import threading

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from sweeps.laws import LawSettings
from sweeps.plan import Plan, PlannedRun, make_plan
from sweeps.spec_files import parse_spec
from tasks.live import LivePage, kept_live
from tasks.progress import ProgressWriter
from tasks.state import State
from xlstm.run_spec import DataSpec

SETTINGS = LawSettings(resamples=100, target_budgets=(1e12,))


@pytest.fixture(scope="module")
def plan() -> Plan:
    shapes = [{"d_model": d, "num_blocks": 2, "num_heads": 1} for d in (8, 16, 24, 32, 48, 64)]
    spec = parse_spec(
        {
            "name": "tiny",
            "archs": ["mlstm"],
            "context_lengths": [64],
            "budgets": [3e10, 1e11, 3e11],
            "ladder": {"shapes": shapes, "ffn_multiple_of": 8},
            "learning_rate": {"base": 0.01},
            "batch": {"tokens": 512},
        }
    )
    return make_plan(spec, DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64), 256)


class World:
    """A sweep whose runs are finished by hand."""

    def __init__(self, state: State, plan: Plan) -> None:
        self.plan = plan
        self.writer = ProgressWriter(state, "tiny", "flow")
        self.writer.plan(plan.runs, slots=1)
        self.writer.stage("training")
        plan.table.write_parquet(state.sweep_dir("tiny") / "plan.parquet")
        self.client = MlflowClient(state.tracking_uri)
        self.experiment = self.client.create_experiment("tiny", "file:///nowhere")
        self.rng = np.random.default_rng(3)

    def finish(self, runs: tuple[PlannedRun, ...]) -> None:
        for run in runs:
            loss = (0.7 + 38 * run.N**-0.42 + 95 * run.D**-0.345) * np.exp(0.004 * self.rng.standard_normal())
            tracked = self.client.create_run(self.experiment, tags=run.tags)
            self.client.log_metric(tracked.info.run_id, "loss", float(loss))
            self.client.set_terminated(tracked.info.run_id)
            self.writer.run(run.run_key, "running")
            self.writer.run(run.run_key, "finished")


@pytest.fixture
def world(tracked: State, plan: Plan) -> World:
    return World(tracked, plan)


def test_from_an_empty_plan_to_a_law_that_grows_surer(tracked: State, world: World):
    live, runs = LivePage(tracked, "tiny", SETTINGS), world.plan.runs
    empty = live.update()
    assert (empty.total("done"), empty.total("planned")) == (0, len(runs))
    assert "0 of 18 runs done" in live.path.read_text(encoding="utf-8")

    world.finish(runs[:4])
    early = live.update()
    assert early.laws[0].optimum is None
    assert "a first law needs 3 sizes at 2 budgets, so far 1 has them" in live.path.read_text(
        encoding="utf-8"
    )

    for stop in (12, 15, 18):
        world.finish(runs[len(finished(live)) : stop])
        moment = live.update()
    law = moment.laws[0]
    assert law.optimum.budget == 1e12
    assert law.optimum.N.low < law.optimum.N.value < law.optimum.N.high
    ((name, steps),) = moment.history
    assert name == "mLSTM, context 64"
    assert [step.runs for step in steps] == [12, 15, 18]
    assert steps[-1].factor < steps[0].factor
    text = live.path.read_text(encoding="utf-8")
    assert "18 of 18 runs done" in text
    assert "N* ~ C^" in text


def finished(live: LivePage) -> list[int]:
    return list(range(live.update().total("done")))


def test_failures_are_named_and_escaped(tracked: State, world: World):
    run = world.plan.runs[0]
    world.writer.run(run.run_key, "running")
    world.writer.run(run.run_key, "failed", "<script>alert(1)</script>")
    live = LivePage(tracked, "tiny", SETTINGS)
    assert live.update().failures == [(run.name, "<script>alert(1)</script>")]
    text = live.path.read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


def test_nothing_before_there_is_a_plan(tracked: State):
    assert LivePage(tracked, "tiny", SETTINGS).update() is None


def test_it_is_published_in_the_callers_context_and_at_the_end(tracked: State, world: World):
    flow: contextvars.ContextVar[str] = contextvars.ContextVar("flow", default="none")
    said, published = [], threading.Event()

    def publish(text: str) -> None:
        said.append((flow.get(), text))
        published.set()

    token = flow.set("mine")
    with kept_live(LivePage(tracked, "tiny", SETTINGS), publish, pytest.fail, every_s=0.05):
        assert published.wait(20)
        world.finish(world.plan.runs[:2])
    flow.reset(token)
    assert {where for where, _ in said} == {"mine"}
    assert "**2 of 18 runs done**" in said[-1][1]


def test_an_error_ends_the_page_and_not_the_sweep(tracked: State, world: World):
    warnings: list[str] = []

    def broken(_: str) -> None:
        raise OSError("no server")

    with kept_live(LivePage(tracked, "tiny", SETTINGS), broken, warnings.append, every_s=0.05):
        pass
    assert warnings == ["the live page of the sweep stopped: no server"]
