"""The trunks that runs of a plan share: whose turn it is to train one on, and what is left of it."""

import shutil
import threading
from collections.abc import Iterable, Set

from filelock import FileLock

from sweeps.plan import PlannedRun, branch_points
from tasks.state import State
from xlstm.trunk import TrunkJob, has_trunk, trunk_key


class Trunks:
    """Of the runs of one plan; threads may share it.

    A run trains its trunk on from where the one before left it, and leaves the points of all others that it
    passes. For that it has the trunk to itself: two that start at the same moment go one after the other, and
    the second begins where the first has brought it.
    """

    def __init__(self, state: State, runs: Iterable[PlannedRun] = ()) -> None:
        self.state = state
        runs = [run for run in runs if has_trunk(run.spec)]
        self._points = branch_points(runs)
        self._open = {
            key: {run.run_key for run in runs if trunk_key(run.spec) == key} for key in self._points
        }
        self._guard = threading.Lock()

    def job(self, run: PlannedRun) -> TrunkJob | None:
        """The trunk of a run; None where it shares nothing."""
        if not has_trunk(run.spec):
            return None
        key = trunk_key(run.spec)
        return TrunkJob(folder=self.state.trunk_dir(key), leave_at=self._points.get(key, ()))

    def lock(self, run: PlannedRun) -> FileLock | None:
        """Held by the flow that trains a run of this trunk."""
        if not has_trunk(run.spec):
            return None
        return FileLock(self.state.lock(f"trunk-{trunk_key(run.spec)[:32]}"))

    def finished(self, run: PlannedRun, before: Set[str] = frozenset()) -> None:
        """A run is finished, as those of `before` were.

        After the last one only the trunk's furthest point stays: a larger budget may go on from there.
        """
        trunk = self.job(run)
        if trunk is None:
            return
        with self._guard:
            left = self._open.get(trunk_key(run.spec), set())
            left -= {run.run_key, *before}
        if not left:
            points = sorted(trunk.folder.glob("*-*.ckpt"), key=lambda path: path.stem.partition("-")[2])
            for path in points[:-1]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
