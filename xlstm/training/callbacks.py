"""What happens around the steps: measuring, validating, leaving a point to resume from."""

import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from xlstm.run_spec import RunSpec
from xlstm.training.failures import Failure, NonFiniteLossError, StoppedError
from xlstm.training.files import flush_to_disk, write_atomically
from xlstm.training.gauges import Gauges
from xlstm.training.job import PROGRESS
from xlstm.training.module import TrainingModule, held_out_loss
from xlstm.training.sharded import put_in_place, remove
from xlstm.training.tracking import Tracker

HISTORY_POINTS = 100
"""Of each training metric's history, however long the run."""
TAIL_FRACTION = 0.05
"""The last steps whose mean is the final train loss."""


class Monitor(Callback):
    """Losses, norms and speed; progress on disk; an end where the loss is not finite.

    Values stay on the device until they are needed: one synchronisation a history point, or a second.
    """

    def __init__(self, spec: RunSpec, tracker: Tracker, run_dir: Path, gauges: Gauges) -> None:
        self.spec = spec
        self.tracker = tracker
        self.gauges = gauges
        self.progress_file = run_dir / PROGRESS
        self.every = max(1, spec.steps // HISTORY_POINTS)
        self.tail: deque[float] = deque(maxlen=max(1, math.ceil(spec.steps * TAIL_FRACTION)))
        self.step_times: list[float] = []
        self.validation_loss: float | None = None
        self.earlier_wall_time = 0.0
        self.begun_at: int | None = None
        """Steps that another run had trained when this one began."""
        self.started = time.monotonic()
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self._window: list[tuple[float, float]] = []
        self._window_time = 0.0
        self._mark = 0.0
        self._last_progress = 0.0

    @property
    def wall_time(self) -> float:
        return self.earlier_wall_time + time.monotonic() - self.started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.begun_at is None:
            self.begun_at = trainer.global_step
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        assert pl_module.step_loss is not None
        assert pl_module.step_grad_norm is not None
        step = trainer.global_step
        self._pending.append((step, pl_module.step_loss, pl_module.step_grad_norm))
        if step % self.every == 0 or step == self.spec.steps:
            self.collect()
            self._log_window(step)
        if time.monotonic() - self._last_progress >= 1.0:
            self.collect()
            self._write_progress(step)

    def collect(self) -> None:
        """Fetch the steps that are still on the device; NonFiniteLossError where one is not finite."""
        if not self._pending:
            return
        steps, losses, norms = zip(*self._pending, strict=True)
        values = torch.stack([torch.stack(losses), torch.stack(norms).to(losses[0])]).tolist()
        self._pending.clear()
        now = time.perf_counter()
        self._window_time += now - self._mark
        self._mark = now
        for step, loss, norm in zip(steps, *values, strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise NonFiniteLossError(f"diverged: train loss {loss}, gradient norm {norm} at step {step}")
            self.tail.append(loss)
            self._window.append((loss, norm))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time in here is not time of training."""
        self.collect()
        start = time.perf_counter()
        yield
        self._mark += time.perf_counter() - start

    def alive(self) -> None:
        """Touch the progress file: something moves, though no step ends meanwhile. Once a second at most."""
        if time.monotonic() - self._last_progress >= 1.0 and self.progress_file.exists():
            os.utime(self.progress_file)
            self._last_progress = time.monotonic()

    def _log_window(self, step: int) -> None:
        losses, norms = zip(*self._window, strict=True)
        self.step_times.append(self._window_time / len(losses))
        tokens_per_s = self.tokens_per_step / self.step_times[-1]
        self.tracker.log(
            step,
            {
                "train_loss": statistics.fmean(losses),
                "optimizer/grad_norm": statistics.fmean(norms),
                "optimizer/lr": self.tracker.learning_rate(step - 1),
                "tokens_per_s": tokens_per_s,
                **self.gauges.read(tokens_per_s),
            },
        )
        self._window.clear()
        self._window_time = 0.0

    @property
    def tokens_per_step(self) -> int:
        return self.spec.batch_size * self.spec.context_length

    @property
    def step_time(self) -> float:
        return statistics.median(self.step_times)

    def _write_progress(self, step: int) -> None:
        self._last_progress = time.monotonic()
        step_time = self.step_times[-1] if self.step_times else self._window_time / len(self._window)
        progress = {
            "step": step,
            "steps": self.spec.steps,
            "loss": self.tail[-1],
            "validation_loss": self.validation_loss,
            "tokens_per_s": self.tokens_per_step / step_time,
            "started_at": self.started_at,
            "eta_s": (self.spec.steps - step) * step_time,
        }
        write_atomically(self.progress_file, json.dumps(progress))

    def state_dict(self) -> dict[str, Any]:
        return {
            "tail": list(self.tail),
            "window": [list(pair) for pair in self._window],
            "window_time": self._window_time,
            "step_times": self.step_times,
            "validation_loss": self.validation_loss,
            "wall_time": self.wall_time,
            "run_key": self.spec.run_key,
            "begun_at": self.begun_at,
            "history": self.tracker.history(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tail.extend(state_dict["tail"])
        self._window = [tuple(pair) for pair in state_dict["window"]]
        self._window_time = state_dict["window_time"]
        self.step_times = state_dict["step_times"]
        self.validation_loss = state_dict["validation_loss"]
        if state_dict.get("run_key", self.spec.run_key) == self.spec.run_key:
            self.earlier_wall_time = state_dict["wall_time"]
            self.begun_at = state_dict.get("begun_at", 0)
        self.tracker.restore(state_dict["history"])


class Validation(Callback):
    """The loss on the fixed held-out set, every `validation_every` steps and after the last."""

    def __init__(self, spec: RunSpec, windows: Tensor, monitor: Monitor) -> None:
        self.spec = spec
        self.windows = windows
        self.monitor = monitor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.spec.validation_every and step != self.spec.steps:
            return
        assert isinstance(pl_module, TrainingModule)
        with self.monitor.pause():
            windows = self.windows.to(pl_module.device)
            context = trainer.precision_plugin.forward_context()
            size = pl_module.micro_batch or self.spec.batch_size
            alive, share, execution = self.monitor.alive, pl_module.share, pl_module.execution
            loss = held_out_loss(pl_module.model, windows, size, context, alive, share, execution)
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"diverged: validation loss {loss} at step {step}")
        self.monitor.validation_loss = loss
        self.monitor.tracker.log(step, {"loss": loss})


class Due(IntEnum):
    """Whether to leave a checkpoint at this step: a number, which processes can send each other."""

    NO = 0
    YES = 1
    LAST = 2
    """And to end there."""


def save_whole(trainer: Trainer, path: Path) -> None:
    """Replace the checkpoint at `path` by one of this step; a kill leaves the old one or the new.

    All processes of a training write it together, and the first puts it in its place.
    """
    temporary = path.with_suffix(".new")
    try:
        if trainer.is_global_zero:
            remove(temporary)  # a kill's: what is written to the name of a folder would go into it
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            flush_to_disk(temporary)
    except BaseException:
        remove(temporary)  # half a file would keep a full disk full
        raise
    if trainer.is_global_zero:
        put_in_place(temporary, path)


class ResumePoint(Callback):
    """A checkpoint every so many seconds, with the random generators, which Lightning leaves out."""

    def __init__(
        self, path: Path, every_s: float, run_key: str, monitor: Monitor, pause_at: float | None = None
    ) -> None:
        """`pause_at`: seconds since the epoch at which to leave a checkpoint and raise StoppedError."""
        self.path = path
        self.every_s = every_s
        self.pause_at = math.inf if pause_at is None else pause_at
        self.run_key = run_key
        self.monitor = monitor
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step, steps = trainer.global_step, self.monitor.spec.steps
        due = Due.NO if step == steps else pl_module.share.agree(self._due)
        if due == Due.NO:
            return
        with self.monitor.pause():
            save_whole(trainer, self.destination(step))
        self.saved(trainer, step)
        self._last = time.monotonic()
        if due == Due.LAST:
            raise StoppedError(
                Failure.PAUSED, f"paused at step {step} of {steps}, when its sweep's time was up"
            )

    def destination(self, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self.path

    def saved(self, trainer: Trainer, step: int) -> None:
        """What follows when it is there."""

    def _due(self) -> int:
        if time.time() >= self.pause_at:
            return Due.LAST
        return Due.YES if time.monotonic() - self._last >= self.every_s else Due.NO

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"run_key": self.run_key, "cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["run_key"] != self.run_key:
            raise ValueError(f"{self.path}: belongs to run {state_dict['run_key']}; remove it")
        torch.set_rng_state(state_dict["cpu"])
        if state_dict["cuda"]:
            torch.cuda.set_rng_state_all(state_dict["cuda"])
