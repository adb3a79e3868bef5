"""How far a benchmark is, in the file that a sweep's followers read."""

from collections.abc import Sequence

from sweeps.inference.grid import PlannedPoint
from tasks.progress import ProgressWriter, RunProgress


class PointProgress(ProgressWriter):
    """Progress of points instead of runs."""

    def enter(self, points: Sequence[PlannedPoint]) -> None:
        """Enter the points, all queued."""
        with self._guard:
            self._progress.runs = [
                RunProgress(run_key=p.key, name=p.name, arch=p.point.model.arch, estimated_s=1.0)
                for p in points
            ]
            self._by_key = {entry.run_key: entry for entry in self._progress.runs}
            self._write()
