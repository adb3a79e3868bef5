"""What a sweep asks of MLflow, on a real store."""

from pathlib import Path

import pytest
from filelock import FileLock

from tasks import tracking
from tasks.state import State


def start(state: State, key: str, **metrics: float) -> str:
    client = tracking.client(state.tracking_uri)
    experiment = tracking.ensure_experiment(state, "tiny")
    run_id = client.create_run(experiment, tags={tracking.RUN_KEY: key}).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    return str(run_id)


def status(state: State, run_id: str) -> str:
    return str(tracking.client(state.tracking_uri).get_run(run_id).info.status)


def test_only_a_finished_run_with_a_loss_is_done(tracked: State) -> None:
    client = tracking.client(tracked.tracking_uri)
    client.set_terminated(start(tracked, "a", loss=3.0), "FAILED")
    client.set_terminated(start(tracked, "a"), "FINISHED")
    start(tracked, "a", loss=2.0)
    assert tracking.finished_run(tracked, "a") is None
    done = start(tracked, "a", loss=1.0)
    client.set_terminated(done, "FINISHED")
    assert tracking.finished_run(tracked, "a") == done
    assert tracking.finished_run(tracked, "b") is None


def test_a_run_is_an_orphan_when_no_process_holds_its_folder(tracked: State) -> None:
    dead, alive = start(tracked, "dead"), start(tracked, "alive")
    tracked.run_dir("dead").mkdir()
    tracked.run_dir("alive").mkdir()
    with FileLock(tracked.run_dir("alive") / ".lock"):
        assert tracking.reconcile(tracked) == ["dead"]
        assert (status(tracked, dead), status(tracked, alive)) == ("KILLED", "RUNNING")
    assert tracking.reconcile(tracked) == ["alive"]
    assert tracking.orphans(tracked) == []


def test_runs_that_are_not_ours_are_left_alone(tracked: State) -> None:
    client = tracking.client(tracked.tracking_uri)
    foreign = client.create_run(tracking.ensure_experiment(tracked, "tiny")).info.run_id
    assert tracking.reconcile(tracked) == []
    assert status(tracked, foreign) == "RUNNING"


def test_reports_of_a_sweep_share_one_run(tracked: State, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    experiment = tracking.ensure_experiment(tracked, "tiny")
    ids = set()
    for text in ("first", "second"):
        report.write_text(text)
        ids.add(tracking.log_report(tracked, experiment, "tiny", [report]))
    (run_id,) = ids
    (stored,) = tracked.artifacts.rglob("report.html")
    assert stored.read_text() == "second"
    assert status(tracked, run_id) == "FINISHED"


def test_a_sweep_has_one_run_with_what_it_found(tracked: State, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("report")
    experiment = tracking.ensure_experiment(tracked, "tiny")
    parent = tracking.sweep_run(tracked, experiment, "tiny")
    logged = tracking.log_report(
        tracked, experiment, "tiny", [report], note="**tiny**", metrics={"mlstm-64/optimum_N": 1e5}
    )
    assert logged == parent == tracking.sweep_run(tracked, experiment, "tiny")
    run = tracking.client(tracked.tracking_uri).get_run(parent)
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.tags[tracking.NOTE] == "**tiny**"
    assert run.data.metrics == {"mlstm-64/optimum_N": 1e5}
    stored = tracking.client(tracked.tracking_uri).get_experiment(experiment)
    assert stored.tags[tracking.NOTE] == "**tiny**"


def test_the_guess_names_what_is_settled_and_no_more(tracked: State) -> None:
    client = tracking.client(tracked.tracking_uri)
    assert tracking.seem_settled(tracked, [])
    for key, end in {"done": "FINISHED", "cut": "KILLED", "bad": "FAILED", "gone": "FINISHED"}.items():
        run_id = start(tracked, key, loss=1.0)
        client.set_tag(run_id, tracking.FAILURE, "diverged" if key == "bad" else "killed")
        client.set_tag(run_id, tracking.ERROR, "why")
        client.set_terminated(run_id, end)
        if key == "gone":
            client.delete_run(run_id)
    start(tracked, "running")
    known = tracking.settled(tracked)
    for key in ("done", "cut", "bad", "gone", "running", "never"):
        assert tracking.seem_settled(tracked, [key]) == (key in {*known.finished, *known.diverged}), key
    assert tracking.seem_settled(tracked, ["done", "bad"])
    assert not tracking.seem_settled(tracked, ["done", "never"])


def test_where_nothing_can_be_read_there_is_no_early_start(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.seem_settled(state, ["any"])  # no database yet
    state.tracking_db.write_text("not SQLite")
    assert tracking.seem_settled(state, ["any"])
    monkeypatch.setenv("ISOFLOP_TRACKING_URI", "postgresql://db/mlflow")
    assert tracking.seem_settled(state, ["any"])
