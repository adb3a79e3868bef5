"""A capability run in a training process: tracked, resumed from its last checkpoint, measured in the end."""

import json
import math
import pickle
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlstm.capability.material import open_material
from xlstm.capability.measure import measure
from xlstm.capability.training import Training
from xlstm.timing.measure import peak_memory
from xlstm.training.execution import Execution
from xlstm.training.failures import Failure, NonFiniteLossError, StoppedError
from xlstm.training.files import flush_to_disk, write_atomically
from xlstm.training.job import CHECKPOINT, PROGRESS, SPEC, RunResult, TrainJob
from xlstm.training.surroundings import device_name
from xlstm.training.tracking import Tracker

MEASURES = "measures.json"
"""Every measurement of the run, an artifact of its MLflow run; the same numbers are its metrics."""
HISTORY_POINTS = 50


def run_task(job: TrainJob, device: torch.device, tracker: Tracker) -> RunResult:
    """Train, measure, and tell the tracker. Raises what `xlstm.training.run.train` raises."""
    spec = job.spec
    material = open_material(spec, job.data_folder)
    record = Execution().settled(spec, on_gpu=device.type == "cuda").cuda_graph
    training = Training(spec, material, device, micro_batch=job.micro_batch, record=bool(record))
    watch = _Watch(job, training, tracker)
    watch.resume()
    while not training.is_over:
        watch.after(training.advance())
    measures = measure(training.model, training.material, device, context=training.context, alive=watch.alive)
    if not math.isfinite(measures["loss"]):
        raise NonFiniteLossError(f"diverged: held-out loss {measures['loss']}")
    write_atomically(job.run_dir / MEASURES, json.dumps(measures, indent=1, sort_keys=True) + "\n")
    tracker.log(spec.steps, {"loss": measures["loss"]})
    result = RunResult(
        run_key=spec.run_key,
        status="finished",
        loss=measures["loss"],
        train_loss=watch.last_loss,
        wall_time_s=watch.wall_time,
        step_time_s=watch.step_time,
        tokens_per_s=spec.batch_size * spec.context_length / watch.step_time,
        memory_bytes=float(peak_memory(device)),
        device=device_name(device),
        mlflow_run_id=tracker.run_id,
        mlflow_experiment_id=tracker.experiment_id,
    )
    final = {name: value for name, value in (measures | result.metrics()).items() if name != "loss"}
    tracker.finish(final, [job.run_dir / SPEC, job.run_dir / MEASURES])
    return result


class _Watch:
    """What happens around the steps: history, progress file, checkpoints, an end where the loss is no
    number."""

    def __init__(self, job: TrainJob, training: Training, tracker: Tracker) -> None:
        self.job = job
        self.training = training
        self.tracker = tracker
        self.every = max(1, job.spec.steps // HISTORY_POINTS)
        self.last_loss = math.nan
        self.step_times: list[float] = []
        self.checkpoint = job.run_dir / CHECKPOINT
        self.checkpoint.parent.mkdir(exist_ok=True)
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._earlier = 0.0
        self._pending: list[Tensor] = []
        self._started = self._mark = self._saved = time.monotonic()
        self._said = 0.0

    @property
    def wall_time(self) -> float:
        """Seconds of all attempts, up to the checkpoint that each left."""
        return self._earlier + time.monotonic() - self._started

    @property
    def step_time(self) -> float:
        """Median over windows of the history, seconds."""
        return statistics.median(self.step_times) if self.step_times else math.nan

    def resume(self) -> None:
        """Go on from the checkpoint, if there is a whole one."""
        state = _read(self.checkpoint)
        if state is None:
            return
        self.training.load_state_dict(state["training"])
        self.step_times, self._earlier = state["step_times"], state["wall_time"]
        self.last_loss, self._pending = state["last_loss"], list(state["pending"])
        self.tracker.restore(state["history"])

    def after(self, loss: Tensor) -> None:
        """After a step: look at the losses now and then, which is when the device is waited for."""
        self._pending.append(loss)
        step = self.training.step
        if step % self.every == 0 or self.training.is_over:
            self._collect(step)
        if time.monotonic() - self._said >= 1.0:
            self._say(step)
        if self.training.is_over:
            return
        is_last = self.job.pause_at is not None and time.time() >= self.job.pause_at
        if is_last or time.monotonic() - self._saved >= self.job.checkpoint_every_s:
            self._save()
        if is_last:
            raise StoppedError(
                Failure.PAUSED,
                f"paused at step {step} of {self.job.spec.steps}, when its sweep's time was up",
            )

    def alive(self) -> None:
        """While it measures: the run still moves."""
        if time.monotonic() - self._said >= 1.0:
            self._say(self.training.step)

    def _collect(self, step: int) -> None:
        losses = torch.stack(self._pending).tolist()
        bad = [i for i, value in enumerate(losses) if not math.isfinite(value)]
        if bad:
            at = step - len(losses) + bad[0] + 1
            raise NonFiniteLossError(f"diverged: train loss {losses[bad[0]]} at step {at}")
        self.last_loss = statistics.fmean(losses)
        now = time.monotonic()
        self.step_times.append((now - self._mark) / len(losses))
        self._pending, self._mark = [], now
        self.tracker.log(step, {"train_loss": self.last_loss, "optimizer/lr": self._rate()})

    def _rate(self) -> float:
        return self.tracker.learning_rate(self.training.step - 1)

    def _say(self, step: int) -> None:
        self._said = time.monotonic()
        pace = self.step_times[-1] if self.step_times else math.nan
        known = math.isfinite(pace)
        spec = self.job.spec
        progress = {
            "step": step,
            "steps": spec.steps,
            "loss": self.last_loss if math.isfinite(self.last_loss) else None,
            "tokens_per_s": spec.batch_size * spec.context_length / pace if known else None,
            "started_at": self.started_at,
            "eta_s": (spec.steps - step) * pace if known else None,
        }
        write_atomically(self.job.run_dir / PROGRESS, json.dumps(progress))

    def _save(self) -> None:
        temporary = self.checkpoint.with_suffix(".new")
        state = {
            "training": self.training.state_dict(),
            "step_times": self.step_times,
            "wall_time": self.wall_time,
            "last_loss": self.last_loss,
            "pending": self._pending,
            "history": self.tracker.history(),
        }
        try:
            torch.save(state, temporary)
            flush_to_disk(temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)  # half a file would keep a full disk full
            raise
        temporary.replace(self.checkpoint)
        self._saved = self._mark = time.monotonic()


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """The state of a whole checkpoint. A damaged one is put aside, and the run starts at step 0."""
    if not checkpoint.exists():
        return None
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        aside = checkpoint.with_suffix(".unreadable")
        checkpoint.replace(aside)
        print(f"{aside}: cannot be read ({error}); training starts at step 0", flush=True)
        return None
