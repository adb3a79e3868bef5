"""One training, from a TrainJob to a RunResult; every end of it is written down."""

import faulthandler
import logging
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer

from xlstm.accounting import training_flops
from xlstm.capability.run import run_task
from xlstm.data import Corpus, CorpusError, TokenStream, load_corpus, validation_windows
from xlstm.models import build_model
from xlstm.run_spec import RunSpec
from xlstm.timing.measure import peak_memory
from xlstm.training.blocks import determinism, keep_compiled_code, kernels_for
from xlstm.training.callbacks import Monitor, Validation
from xlstm.training.execution import Execution
from xlstm.training.failures import Failure, StoppedError, classify, describe, one_line
from xlstm.training.files import write_atomically
from xlstm.training.gauges import Gauges
from xlstm.training.job import (
    ATTEMPT,
    CHECKPOINT,
    NO_PROGRESS,
    RANKS,
    RESULT,
    SPEC,
    TIME_IS_UP,
    UNSAID,
    RunResult,
    TrainJob,
)
from xlstm.training.loading import Batches
from xlstm.training.memory import fitting_micro_batch
from xlstm.training.module import TrainingModule
from xlstm.training.peak import matrix_peak
from xlstm.training.resuming import readable, resume_points, trunk_start
from xlstm.training.saved import save_model
from xlstm.training.sharded import WholeCheckpoints
from xlstm.training.share import ALONE, Share
from xlstm.training.strategies import Environment, Shards, strategy_for, whole_weights
from xlstm.training.surroundings import device_name, surroundings
from xlstm.training.system_metrics import system_metrics
from xlstm.training.together import train_together
from xlstm.training.tracking import Silent, Tracker, close_dead_attempt, write_spec

PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


HANDOVER_S = 30.0
"""Wait for the folder of a run: a predecessor whose owner was killed needs seconds to end."""
STOPPING = {
    signal.SIGTERM: (Failure.STOPPED, "stopped by SIGTERM"),
    TIME_IS_UP: (Failure.TIME_LIMIT, "stopped at its time limit"),
    NO_PROGRESS: (Failure.HUNG, "stopped as it made no progress"),
}


def train(job: TrainJob) -> RunResult:
    """Train a run, or go on with one that was interrupted; result.json comes last, and for failures too.

    Raises what made the run fail, after the MLflow run and result.json say so: NonFiniteLossError,
    CorpusError, StoppedError (signals), errors of torch and of the tracking store; RankError for a failure in
    one of several processes. `failures.classify` tells the kinds apart.
    """
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with _alone(job.run_dir), _trunk_alone(job), _signals_stop():
        (job.run_dir / RESULT).unlink(missing_ok=True)
        write_spec(job, job.run_dir / SPEC)
        tracker: Tracker | None = None
        try:
            if job.cache_folder is not None:
                keep_compiled_code(job.cache_folder)
            if job.peers:
                result = train_together(job, _train_share)
            else:
                job = _fitted(job)
                tracker = _start(job)
                result = _tracked_fit(job, ALONE, tracker)
        except BaseException as error:
            failure, reason = classify(error), one_line(error)
            _record_failure(job, tracker or (_Gone(job) if job.peers else None), failure, reason)
            raise
        write_atomically(job.run_dir / RESULT, result.to_json())
        shutil.rmtree(job.run_dir / CHECKPOINT.parent, ignore_errors=True)
        return result


def record_death(job: TrainJob, failure: Failure, reason: str) -> None:
    """Say FAILED for a training whose process is gone and could not say it."""
    with _alone(job.run_dir):
        close_dead_attempt(job, "FAILED", failure, reason)
        _record_failure(job, None, failure, reason)


def _fitted(job: TrainJob, share: Share = ALONE) -> TrainJob:
    """With the micro-batch that the first of the run's GPUs has room for, where nobody has said one."""
    device = torch.device(job.devices[share.rank])
    if device.type != "cuda" or job.micro_batch is not None or job.spec.task is not None:
        return job
    execution = _execution(job, share)
    own = replace(job.spec, batch_size=-(-job.spec.batch_size // share.ranks))
    shards = share.ranks if job.strategy == "fsdp" else 1

    def fitting() -> int:
        free, total = torch.cuda.mem_get_info(device)
        limit = min(free, job.gpu_share * total)
        return fitting_micro_batch(own, execution, limit, shards) or 0

    return replace(job, micro_batch=share.agree(fitting) or None)


def _execution(job: TrainJob, share: Share) -> Execution:
    """The switches of the job, settled."""
    return job.execution.settled(
        job.spec,
        on_gpu=torch.device(job.devices[share.rank]).type == "cuda",
        processes=share.ranks,
        sharded=job.strategy == "fsdp",
    )


class _Gone:
    """The MLflow run of an attempt whose processes are gone."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        attempt = job.run_dir / ATTEMPT
        self.run_id = attempt.read_text() if attempt.exists() else None

    def fail(self, failure: Failure, error: str) -> None:
        close_dead_attempt(self.job, "FAILED", failure, error)


def _record_failure(job: TrainJob, tracker: Tracker | _Gone | None, failure: Failure, reason: str) -> None:
    """In the store where it answers, and in result.json, from which the next sweep tells the store."""
    error = describe(failure, reason)
    result = RunResult(
        run_key=job.spec.run_key,
        status="failed",
        error=error,
        failure=failure,
        mlflow_run_id=None if tracker is None else tracker.run_id,
    )
    try:
        if tracker is not None:
            tracker.fail(failure, error)
    except Exception as lost:
        if classify(lost) not in (Failure.DATABASE_LOST, Failure.DISK_FULL):
            raise
        traceback.print_exc()
        write_atomically(job.run_dir / UNSAID, result.to_json())
    finally:
        write_atomically(job.run_dir / RESULT, result.to_json())


def _start(job: TrainJob) -> Tracker:
    together = {"isoflop.devices": str(len(job.devices)), "isoflop.strategy": job.strategy}
    tags = surroundings(job.spec, torch.device(job.device), job.threads)
    return Tracker.start(job, {**tags, **together} if job.peers else tags)


def _train_share(job: TrainJob, share: Share) -> RunResult:
    """What one of several processes does; the first of them tells the store how it goes."""
    with _signals_stop():
        job = _fitted(job, share)
        return _tracked_fit(job, share, _start(job) if share.is_first else Silent(job))


def _tracked_fit(job: TrainJob, share: Share, tracker: Tracker) -> RunResult:
    torch.set_num_threads(job.threads)
    device = torch.device(job.devices[share.rank])
    if not share.is_first:
        return _fit(job, device, tracker, share)
    with system_metrics(tracker.run_id, job.tracking_uri):
        return _fit(job, device, tracker, share)


def _fit(job: TrainJob, device: torch.device, tracker: Tracker, share: Share) -> RunResult:
    spec = job.spec
    if spec.task is not None:
        return run_task(job, device, tracker)
    corpus = _corpus(job)
    torch.manual_seed(spec.seed)
    execution = _execution(job, share)
    module = TrainingModule(
        build_model(spec.model),
        spec.optimizer,
        spec.steps,
        spec.batch_size,
        job.micro_batch,
        share,
        execution,
    )
    held_out = torch.from_numpy(
        validation_windows(corpus.validation, spec.context_length, spec.validation_tokens)
    )
    stream = TokenStream(corpus.train, spec.context_length, spec.batch_size, spec.seed)
    own_dir = job.run_dir if share.is_first else job.run_dir / RANKS / str(share.rank)
    peak = matrix_peak(device, job.cache_folder) if device.type == "cuda" and share.is_first else None
    gauges = Gauges(spec, device, peak, share.ranks)
    monitor = Monitor(spec, tracker, own_dir, gauges)
    checkpoint = job.run_dir / CHECKPOINT
    checkpoint.parent.mkdir(exist_ok=True)
    resume_from = readable(checkpoint, share) or trunk_start(job, share)
    around = [monitor, Validation(spec, held_out, monitor), *resume_points(job, monitor)]
    trainer = _trainer(job, share, around, recorded=bool(execution.cuda_graph))
    batches = Batches(
        stream,
        lambda: trainer.global_step,
        rows=share.rows(spec.batch_size),
        ahead=execution.prefetch or 0,
        pinned=device.type == "cuda",
    )
    with kernels_for(spec.precision, device):
        trainer.fit(module, batches, ckpt_path=resume_from, weights_only=True)  # type: ignore[arg-type]
    result = _result(job, corpus, stream, device, monitor, tracker, share)
    final = {k: v for k, v in result.metrics().items() if k != "loss"}  # its history ends with it
    tracker.finish(final, _artifacts(job, module, share))
    return result


def _corpus(job: TrainJob) -> Corpus:
    corpus = load_corpus(job.data_folder)
    found, planned = corpus.spec().content_hash, job.spec.data.content_hash
    if found != planned:
        raise CorpusError(
            f"{job.data_folder}: holds other tokens ({found[:12]}) than the run was planned with"
            f" ({planned[:12]}); plan the sweep again"
        )
    return corpus


def _trainer(job: TrainJob, share: Share, callbacks: list, *, recorded: bool) -> Trainer:
    devices = [torch.device(device) for device in job.devices]
    on_gpu = devices[0].type == "cuda"
    strategy = strategy_for(job.strategy, share, recorded=recorded)
    _quiet()
    return Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        strategy=strategy,
        devices=[device.index or 0 for device in devices] if on_gpu else len(devices),
        precision=PRECISION[job.spec.precision],
        max_steps=job.spec.steps,
        max_epochs=-1,
        gradient_clip_val=job.spec.optimizer.grad_clip,
        callbacks=callbacks,
        deterministic=determinism(job.spec.model.arch, job.execution) if on_gpu else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=job.run_dir,
        # A job of a cluster's scheduler starts many of these: none of them is to look for the others.
        plugins=[Environment(share), *([] if isinstance(strategy, Shards) else [WholeCheckpoints()])],
    )


def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def _result(
    job: TrainJob,
    corpus: Corpus,
    stream: TokenStream,
    device: torch.device,
    monitor: Monitor,
    tracker: Tracker,
    share: Share,
) -> RunResult:
    loss = monitor.validation_loss
    assert loss is not None, "the last step is always validated"
    return RunResult(
        run_key=job.spec.run_key,
        status="finished",
        loss=loss,
        bpb=corpus.bits_per_byte(loss),
        train_loss=float(np.mean(monitor.tail)),
        spent_flops=_spent_flops(job.spec, monitor.begun_at or 0),
        epochs=stream.epochs(job.spec.steps),
        wall_time_s=monitor.wall_time,
        step_time_s=monitor.step_time,
        tokens_per_s=monitor.tokens_per_step / monitor.step_time,
        mfu=monitor.gauges.mfu(monitor.tokens_per_step / monitor.step_time),
        power_w=monitor.gauges.overall_power_w(),
        memory_bytes=share.largest(float(peak_memory(device))),
        device=device_name(device),
        mlflow_run_id=tracker.run_id,
        mlflow_experiment_id=tracker.experiment_id,
    )


def _spent_flops(spec: RunSpec, begun_at: int) -> float:
    tokens = (spec.steps - begun_at) * spec.batch_size * spec.context_length
    return training_flops(spec.model, spec.context_length, tokens)


def _artifacts(job: TrainJob, module: TrainingModule, share: Share) -> list[Path]:
    artifacts = [job.run_dir / SPEC]
    if job.keep_final_checkpoint:
        weights = whole_weights(module.model)
        if share.is_first:
            artifacts.append(save_model(weights, job.spec, job.run_dir))
    return artifacts


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder; the kernel lets go of it on any death."""
    lock = FileLock(run_dir / ".lock", timeout=HANDOVER_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"{run_dir}: is being trained by another process") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _trunk_alone(job: TrainJob) -> Iterator[None]:
    """The same of the folder of the run's trunk, where it has one."""
    if job.trunk is None:
        yield
        return
    job.trunk.folder.mkdir(parents=True, exist_ok=True)
    with _alone(job.trunk.folder):
        yield


@contextmanager
def _signals_stop() -> Iterator[None]:
    """Signals raise StoppedError. Lightning alone would end the loop and let the process exit with 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(*STOPPING[signal.Signals(number)])

    previous = {number: signal.signal(number, stop) for number in STOPPING}
    with suppress(OSError, ValueError):  # a standard error that is no file, as in tests
        faulthandler.unregister(NO_PROGRESS)  # a fork's, which the line above has put out of action
        faulthandler.register(NO_PROGRESS, chain=True)
    try:
        yield
    finally:
        faulthandler.unregister(NO_PROGRESS)
        for number, handler in previous.items():
            signal.signal(number, handler)
