"""A run from job to result: its files, determinism, resuming, and every way to fail."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mlflow.tracking import MlflowClient

from tests.xlstm.training_jobs import MLSTM, STEPS, TRANSFORMER, elsewhere, history, stop_at, weights
from xlstm.config import ModelConfig
from xlstm.data import Corpus, CorpusError, TokenStream, validation_windows
from xlstm.models import build_model
from xlstm.training.failures import Failure, NonFiniteLossError, StoppedError
from xlstm.training.job import CHECKPOINT, RunResult, TrainJob
from xlstm.training.run import record_death, train


def test_history_result_and_files(job: TrainJob, corpus: Corpus) -> None:
    result = train(job)
    run_id = result.mlflow_run_id or ""
    assert [step for step, _ in history(job, run_id, "loss")] == [10, 20, STEPS]
    assert [step for step, _ in history(job, run_id, "train_loss")] == [*range(1, STEPS + 1), STEPS]
    lr = [value for _, value in history(job, run_id, "optimizer/lr")]
    assert lr[:4] == pytest.approx([3e-3 * i / 4 for i in range(1, 5)])
    assert result.bpb == pytest.approx(corpus.bits_per_byte(result.loss or 0))
    assert result.epochs == STEPS * 64 / len(corpus.train)
    assert RunResult.from_json((job.run_dir / "result.json").read_text()) == result
    progress = json.loads((job.run_dir / "progress.json").read_text())
    assert progress["steps"] == STEPS
    artifacts = {a.path for a in MlflowClient(job.tracking_uri).list_artifacts(run_id)}
    assert artifacts == {"spec.json", "model"}
    assert sorted(p.name for p in job.run_dir.iterdir()) == [
        ".lock",
        "mlflow_run_id",
        "model",
        "progress.json",
        "result.json",
        "spec.json",
    ]


def test_the_loss_is_that_of_the_final_weights_on_the_fixed_windows(job: TrainJob, corpus: Corpus) -> None:
    result = train(job)
    model = build_model(TRANSFORMER)
    model.load_state_dict(weights(job))
    windows = torch.from_numpy(validation_windows(corpus.validation, 16, 320))
    with torch.no_grad():
        log_p = model(windows[:, :-1]).double().log_softmax(-1)
    expected = -log_p.gather(-1, windows[:, 1:, None]).mean().item()
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_it_learns(job: TrainJob, corpus: Corpus) -> None:
    result = train(elsewhere(job, "longer", steps=150))
    assert result.loss is not None
    assert result.loss < corpus.meta.unigram_entropy < math.log(256)


def test_training_is_quiet_and_leaves_no_litter(
    job: TrainJob, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    train(job)
    assert capfd.readouterr() == ("", "")
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("model", [TRANSFORMER, MLSTM], ids=lambda m: m.arch)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_loss_and_another_seed_another(
    job: TrainJob, model: ModelConfig, precision: str
) -> None:
    first, second, other = (
        train(elsewhere(job, name, model=model, precision=precision, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.loss == second.loss
    assert first.train_loss == second.train_loss
    assert first.loss != other.loss
    assert first.run_key == second.run_key != other.run_key


@pytest.mark.parametrize("model", [TRANSFORMER, MLSTM], ids=lambda m: m.arch)
def test_an_interrupted_run_goes_on_bit_identically(
    job: TrainJob, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = elsewhere(job, "whole", model=model)
    cut = dataclasses.replace(elsewhere(job, "cut", model=model), checkpoint_every_s=0.0)
    uninterrupted = train(whole)

    with monkeypatch.context() as patch:
        stop_at(patch, 15, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(cut)
    assert torch.load(cut.run_dir / CHECKPOINT, weights_only=True)["global_step"] in (14, 15)

    fetched: list[int] = []
    with monkeypatch.context() as patch:
        fetch = TokenStream.batch
        patch.setattr(TokenStream, "batch", lambda self, at: fetched.append(at) or fetch(self, at))
        resumed = train(cut)
    assert fetched[0] in (14, 15)
    assert resumed.loss == uninterrupted.loss
    assert resumed.train_loss == uninterrupted.train_loss
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name
    for key in ("loss", "train_loss", "optimizer/grad_norm", "optimizer/lr"):
        ids = uninterrupted.mlflow_run_id or "", resumed.mlflow_run_id or ""
        assert history(whole, ids[0], key) == history(cut, ids[1], key), key
    assert not (cut.run_dir / CHECKPOINT).exists()


def test_sigterm_is_a_failure(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        train(job)
    assert signal.getsignal(signal.SIGTERM) is before
    assert_failed(job, Failure.STOPPED, "stopped by SIGTERM")


def assert_failed(job: TrainJob, failure: Failure, error: str) -> None:
    result = RunResult.from_json((job.run_dir / "result.json").read_text())
    assert (result.status, result.failure, result.error, result.loss) == ("failed", failure, error, None)
    client = MlflowClient(job.tracking_uri)
    experiment = client.get_experiment_by_name(job.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["isoflop.error"] == error
    assert run.data.tags["isoflop.failure"] == failure


def test_a_loss_that_is_not_finite_fails_the_run(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging = dataclasses.replace(job.spec.optimizer, peak_lr=1e30, warmup_steps=1)
    job = elsewhere(job, "diverging", optimizer=diverging)
    with pytest.raises(NonFiniteLossError, match=r"diverged: .* at step [23]$") as error:
        train(job)
    assert_failed(job, Failure.DIVERGED, str(error.value))
    monkeypatch.undo()


def test_an_error_in_the_model_fails_the_run(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB.\nmore words")

    monkeypatch.setattr("xlstm.training.run.build_model", refuse)
    with pytest.raises(RuntimeError):
        train(job)
    assert_failed(
        job,
        Failure.OUT_OF_GPU_MEMORY,
        "out of GPU memory: RuntimeError: CUDA out of memory. Tried to allocate 9 GiB.",
    )


@pytest.mark.parametrize("model", [TRANSFORMER, MLSTM], ids=lambda m: m.arch)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_smaller_micro_batch_gives_the_same_losses(
    job: TrainJob, model: ModelConfig, micro_batch: int
) -> None:
    """Parts of one sequence, and parts that do not divide the batch of four."""
    whole = train(elsewhere(job, "whole", model=model))
    parts = train(dataclasses.replace(elsewhere(job, "parts", model=model), micro_batch=micro_batch))
    for key in ("train_loss", "optimizer/grad_norm", "loss"):
        expected = history(job, whole.mlflow_run_id or "", key)
        found = history(job, parts.mlflow_run_id or "", key)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=2e-5), key
    tags = MlflowClient(job.tracking_uri).get_run(parts.mlflow_run_id or "").data.tags
    assert tags["isoflop.micro_batch"] == str(micro_batch)


def test_a_whole_batch_is_not_changed_by_the_way_it_is_accumulated(job: TrainJob) -> None:
    whole = train(elsewhere(job, "whole"))
    named = train(dataclasses.replace(elsewhere(job, "named"), micro_batch=4))
    assert (whole.loss, whole.train_loss) == (named.loss, named.train_loss)


def test_a_run_goes_on_with_a_smaller_micro_batch(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the middle: the checkpoint of the whole batch serves the half."""
    cut = dataclasses.replace(job, checkpoint_every_s=0.0)

    def run_out() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        stop_at(patch, 15, run_out)
        with pytest.raises(MemoryError):
            train(cut)
    assert_failed(job, Failure.OUT_OF_MEMORY, "out of memory: MemoryError: no message")
    resumed = train(dataclasses.replace(cut, micro_batch=2))
    assert resumed.loss == pytest.approx(train(elsewhere(job, "whole")).loss, rel=2e-5)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half of one"])
def test_a_damaged_checkpoint_is_put_aside_and_the_run_starts_again(
    job: TrainJob, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = job.run_dir / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content)
    assert train(job).loss == train(elsewhere(job, "whole")).loss
    assert "cannot be read" in capfd.readouterr().out


def test_a_damaged_folder_is_put_aside_where_there_is_one_already(job: TrainJob) -> None:
    for name in (CHECKPOINT, CHECKPOINT.with_suffix(".unreadable")):
        (job.run_dir / name).mkdir(parents=True)
        (job.run_dir / name / "__0_0.distcp").write_bytes(b"half of one")
    assert train(job).status == "finished"


def test_shards_that_a_kill_left_unfinished_are_no_checkpoint(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither them nor what is written next to their name: on one GPU now, whose checkpoints are files."""
    cut = dataclasses.replace(job, checkpoint_every_s=0.0)
    unfinished = cut.run_dir / CHECKPOINT.with_suffix(".new")
    unfinished.mkdir(parents=True)
    (unfinished / "__0_0.distcp").write_bytes(b"half of one")
    stop_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        train(cut)
    assert torch.load(cut.run_dir / CHECKPOINT, weights_only=True)["global_step"] in (1, 2)


def test_a_failed_run_can_be_trained_again(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(job)
    assert train(job).status == "finished"


def test_other_data_than_planned_is_refused(job: TrainJob) -> None:
    data = dataclasses.replace(job.spec.data, content_hash="0" * 64)
    with pytest.raises(CorpusError, match=r"holds other tokens .* plan the sweep again"):
        train(elsewhere(job, "other", data=data))


def test_one_process_a_run(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm.training.run.HANDOVER_S", 0.1)
    job.run_dir.mkdir()
    with (
        FileLock(job.run_dir / ".lock", is_singleton=False),
        pytest.raises(RuntimeError, match="is being trained by another process"),
    ):
        train(job)


def test_an_attempt_that_died_without_a_word_is_closed(job: TrainJob) -> None:
    client = MlflowClient(job.tracking_uri)
    experiment = client.create_experiment(job.experiment)

    def die() -> str:
        run_id = client.create_run(experiment, tags={"isoflop.run_key": job.spec.run_key}).info.run_id
        job.run_dir.mkdir(exist_ok=True)
        (job.run_dir / "mlflow_run_id").write_text(run_id)
        return run_id

    early = die()
    finished = train(job).mlflow_run_id or ""
    assert client.get_run(early).info.status == "KILLED"
    record_death(job, Failure.KILLED, "too late to blame")
    assert client.get_run(finished).info.status == "FINISHED"
    assert "isoflop.error" not in client.get_run(finished).data.tags
    late = die()
    record_death(job, Failure.KILLED, "by SIGKILL")
    assert client.get_run(late).info.status == "FAILED"
    assert client.get_run(late).data.tags["isoflop.error"] == "killed: by SIGKILL"


def test_a_job_survives_json(job: TrainJob) -> None:
    assert TrainJob.from_json(job.to_json()) == job


def test_the_jobs_module_is_light() -> None:
    code = "import sys, xlstm.training.job; assert not {'torch', 'lightning', 'mlflow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
