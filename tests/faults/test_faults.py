"""Faults at random instants. After each, a start again gives the table of an undisturbed sweep.

ISOFLOP_FAULTS sets their number; a fault's number is its seed, and seeds go round the kinds.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from sweeps.plan import PlannedRun
from tasks import tracking
from tasks.devices import machine
from tasks.launcher import Launcher
from tasks.leases import Ledger, ledger_folder
from tasks.training import Outcome
from tests.faults.conftest import Counts, alone
from tests.faults.kinds import KINDS, SHORT, Kind, Striker, start_and_kill, start_flow, write_down
from tests.faults.sweep import Sweep
from xlstm.training.failures import Failure

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

SEEDS = range(int(os.environ.get("ISOFLOP_FAULTS", SHORT)))
ROUNDING = 2e-4
"""Relative; of losses whose gradients were summed in another order, over a whole training."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The undisturbed sweep."""

    table: pl.DataFrame
    histories: dict[str, list[tuple[int, float]]]
    seconds: dict[str, float]
    """Of each training."""


@pytest.fixture(scope="module")
def reference(sweep: Sweep, launcher: Launcher) -> Reference:
    outcomes = sweep.train(lambda: alone(launcher))
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    client = tracking.client(sweep.state.tracking_uri)
    ids = {key: found for key, (found,) in sweep.finished().items()}
    return Reference(
        table=sweep.table(),
        histories={key: sweep.history(run_id) for key, run_id in ids.items()},
        seconds={key: client.get_run(run_id).data.metrics["wall_time_s"] for key, run_id in ids.items()},
    )


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed}-{KINDS[seed % len(KINDS)].name}")
def test_a_fault_changes_nothing_that_stays(
    sweep: Sweep, spec_file: Path, launcher: Launcher, reference: Reference, counts: Counts, seed: int
) -> None:
    kind, rng = KINDS[seed % len(KINDS)], Random(seed)
    victim = rng.choice(sweep.plan.runs)
    sweep.forget()

    hit, outcomes = break_down(sweep, spec_file, launcher, kind, victim, reference, rng)
    assert_named(sweep, kind, victim, outcomes, hit)
    survived = {key: ids for key, ids in sweep.finished().items() if ids}

    if kind.final and hit:
        forget_divergence(sweep, launcher, victim)
    started = time.monotonic()
    again = sweep.train(lambda: alone(launcher))
    assert time.monotonic() - started < 60, "something that a dead process held was waited for"

    assert {outcome.error for outcome in again.values()} == {None}
    assert {key: again[key].status for key in survived} == dict.fromkeys(survived, "cached")
    assert_as_undisturbed(sweep, kind, victim, reference, survived)
    counts.add(kind.name, hit)


def break_down(
    sweep: Sweep,
    spec_file: Path,
    launcher: Launcher,
    kind: Kind,
    victim: PlannedRun,
    reference: Reference,
    rng: Random,
) -> tuple[bool, dict[str, Outcome] | None]:
    """One start with the fault: whether it met something, and the outcomes where the flow lived to tell."""
    if kind.blow is None:
        write_down(sweep, victim, kind, rng)
        return True, sweep.train(lambda: alone(launcher))
    delay_s = rng.uniform(0, 0.9 * reference.seconds[victim.run_key])
    if kind.blow.kills_flow:
        return start_and_kill(sweep, spec_file, victim, kind.blow, delay_s), None
    with Striker(sweep, victim, kind.blow, delay_s) as striker:
        outcomes = sweep.train(lambda: alone(launcher))
    return striker.hit, outcomes


def assert_named(
    sweep: Sweep, kind: Kind, victim: PlannedRun, outcomes: dict[str, Outcome] | None, hit: bool
) -> None:
    """The attempt failed for the kind's reason, the rule was followed, and the flow went on."""
    if outcomes is None:
        tracking.reconcile(sweep.state)
    failures = [
        run.data.tags[tracking.FAILURE] for run in sweep.tracked() if tracking.FAILURE in run.data.tags
    ]
    if kind.failure is None:
        assert failures == []
    elif kind.blow is None:
        assert kind.failure in failures
    else:
        # A zygote takes its other trainings along; one whose flow died asks them to stop, then kills them.
        also = {Failure.STOPPED} if kind.blow.kills_flow else set()
        assert set(failures) <= {kind.failure, Failure.KILLED} | also
    if outcomes is None:
        return
    expected = dict.fromkeys(outcomes, "finished") | (
        {victim.run_key: "failed"} if kind.final and hit else {}
    )
    assert {key: outcome.status for key, outcome in outcomes.items()} == expected
    if kind.final and hit:
        assert (outcomes[victim.run_key].error or "").startswith(kind.failure or "")
        assert len([f for f in failures if f == kind.failure]) == 1, "tried again, and blindly"


def forget_divergence(sweep: Sweep, launcher: Launcher, victim: PlannedRun) -> None:
    """A diverged run stays failed however often the sweep starts, until somebody deletes its record."""
    assert sweep.train(lambda: alone(launcher))[victim.run_key].status == "failed"
    for run in sweep.tracked():
        if tracking.FAILURE in run.data.tags:
            tracking.client(sweep.state.tracking_uri).delete_run(run.info.run_id)
    # A weight that is no number may be in the checkpoint too.
    (sweep.state.run_dir(victim.run_key) / "checkpoints" / "resume.ckpt").unlink(missing_ok=True)


def assert_as_undisturbed(
    sweep: Sweep, kind: Kind, victim: PlannedRun, reference: Reference, survived: dict[str, list[str]]
) -> None:
    """None missing, none twice, none trained again, equal; nothing left open."""
    finished = sweep.finished()
    assert {key: len(ids) for key, ids in finished.items()} == dict.fromkeys(finished, 1)
    assert {key: finished[key] for key in survived} == survived
    assert {run.info.status for run in sweep.tracked()} <= {"FINISHED", "FAILED", "KILLED"}
    table, histories = sweep.table(), {key: sweep.history(run_id) for key, (run_id,) in finished.items()}
    if kind.exact:
        assert_frame_equal(table, reference.table, check_exact=True)
        assert histories == reference.histories
    else:
        others, only = pl.col("run_key") != victim.run_key, pl.col("run_key") == victim.run_key
        assert_frame_equal(table.filter(others), reference.table.filter(others), check_exact=True)
        assert_frame_equal(table.filter(only), reference.table.filter(only), rel_tol=ROUNDING)
    assert sweep.database_faults() == []
    assert Ledger(ledger_folder(), machine()).held() == []


@pytest.mark.parametrize("kill", [False, True], ids=["both live", "one dies"])
def test_two_flows_at_once_train_every_run_once(
    sweep: Sweep, spec_file: Path, launcher: Launcher, reference: Reference, kill: bool
) -> None:
    """The same runs, the same state folder: a lease on each key, taken over from a flow that died."""
    if kill and "ISOFLOP_FAULTS" not in os.environ:
        pytest.skip("half a minute: make test-faults runs it")
    sweep.forget()
    first, second = start_flow(sweep, spec_file), start_flow(sweep, spec_file)
    with first, second:
        if kill:
            while not any(sweep.finished().values()):
                time.sleep(0.05)
            first.kill()
        first.wait()
        second.wait()
    finished = sweep.finished()
    assert {key: len(ids) for key, ids in finished.items()} == dict.fromkeys(finished, 1)
    if not kill:
        assert len(sweep.tracked()) == len(sweep.plan.runs)
    tracking.reconcile(sweep.state)
    assert_frame_equal(sweep.table(), reference.table, check_exact=True)
    assert Ledger(ledger_folder(), machine()).held() == []
