"""The shared path of runs of the schedule `wsd`: its checkpoints in a folder of the trunk's own.

`branch-<step>.ckpt` stays: there a run's cool-down begins. `rolling-<step>.ckpt` is the point to resume the
path from, for whichever run comes next.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from xlstm.run_spec import RunSpec
from xlstm.training.callbacks import Monitor, ResumePoint, save_whole
from xlstm.training.sharded import remove
from xlstm.trunk import TrunkJob, branch_step, trunk_key

BRANCH, ROLLING = "branch", "rolling"


def branch_point(folder: Path, step: int) -> Path:
    """The checkpoint after `step` updates, from which runs branch."""
    return folder / f"{BRANCH}-{step:09d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """Updates that a checkpoint of a trunk holds."""
    return int(checkpoint.stem.partition("-")[2])


def starts(trunk: TrunkJob, spec: RunSpec) -> list[Path]:
    """Checkpoints that a run may begin with, the one that leaves it the fewest steps first."""
    found = [path for kind in (BRANCH, ROLLING) for path in trunk.folder.glob(f"{kind}-*.ckpt")]
    return sorted((p for p in found if step_of(p) <= branch_step(spec)), key=step_of, reverse=True)


class TrunkResumePoint(ResumePoint):
    """Points to resume from: the trunk's, for all, up to the branch, and the run's own after it."""

    def __init__(
        self,
        path: Path,
        every_s: float,
        spec: RunSpec,
        trunk: TrunkJob,
        monitor: Monitor,
        pause_at: float | None,
    ) -> None:
        super().__init__(path, every_s, trunk_key(spec), monitor, pause_at)
        self.trunk = trunk
        self.branch = branch_step(spec)

    def destination(self, step: int) -> Path:
        if step > self.branch:
            return self.path
        return self.trunk.folder / f"{ROLLING}-{step:09d}.ckpt"

    def saved(self, trainer: Trainer, step: int) -> None:
        if step <= self.branch:
            forget_earlier(trainer, self.trunk.folder, step)


class BranchPoints(Callback):
    """Leaves the checkpoints that runs branch from, and sets the rate that this run wants after one."""

    def __init__(self, spec: RunSpec, trunk: TrunkJob, monitor: Monitor) -> None:
        self.trunk = trunk
        self.monitor = monitor
        self.steps = {step for step in (*trunk.leave_at, branch_step(spec)) if 0 < step <= branch_step(spec)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint holds the rate of its next update as the run that left it had it."""
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            bases, rules = schedule.base_lrs, schedule.lr_lambdas
            for group, base, rule in zip(schedule.optimizer.param_groups, bases, rules, strict=True):
                rate = base * rule(schedule.last_epoch)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step not in self.steps:
            return
        with self.monitor.pause():
            save_whole(trainer, branch_point(self.trunk.folder, step))
        forget_earlier(trainer, self.trunk.folder, step)


def forget_earlier(trainer: Trainer, folder: Path, step: int) -> None:
    """Remove points to resume from that lie before one that is whole."""
    if not trainer.is_global_zero:
        return
    for path in folder.glob(f"{ROLLING}-*.ckpt"):
        if step_of(path) < step:
            remove(path)
