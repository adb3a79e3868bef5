"""Where a run goes on: checkpoints of its own, the trunk that others brought so far; and what leaves them."""

from pathlib import Path

from lightning.pytorch import Callback

from xlstm.training.branch import BranchPoints, TrunkResumePoint, starts
from xlstm.training.callbacks import Monitor, ResumePoint
from xlstm.training.failures import one_line
from xlstm.training.job import CHECKPOINT, TrainJob
from xlstm.training.sharded import UNREADABLE, latest, remove, require_readable
from xlstm.training.share import Share


def resume_points(job: TrainJob, monitor: Monitor) -> list[Callback]:
    """What leaves checkpoints."""
    path, every_s, pause_at = job.run_dir / CHECKPOINT, job.checkpoint_every_s, job.pause_at
    if job.trunk is None:
        return [ResumePoint(path, every_s, job.spec.run_key, monitor, pause_at)]
    resume = TrunkResumePoint(path, every_s, job.spec, job.trunk, monitor, pause_at)
    return [BranchPoints(job.spec, job.trunk, monitor), resume]


def trunk_start(job: TrainJob, share: Share) -> Path | None:
    """How far others have brought the trunk of a run that has no checkpoint of its own yet."""
    found = [] if job.trunk is None else starts(job.trunk, job.spec)
    share.largest(0.0)  # all processes have looked, before the first puts a damaged one aside
    return next((path for path in found if readable(path, share) is not None), None)


def readable(checkpoint: Path, share: Share) -> Path | None:
    """Where there is a whole checkpoint. A damaged one is put aside, and the run starts at step 0."""
    found = latest(checkpoint)

    def is_readable() -> int:
        if found is None:
            return False
        try:
            require_readable(found)
        except UNREADABLE as error:
            aside = checkpoint.with_suffix(".unreadable")
            remove(aside)
            found.replace(aside)
            print(f"{aside}: cannot be read ({one_line(error)}); training starts at step 0", flush=True)
            return False
        return True

    return found if share.agree(is_readable) else None
