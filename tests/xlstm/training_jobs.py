"""Trainings of a second: their specs, their jobs in folders of their own, and what is read of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.data import Corpus, CorpusSpec, TokenStream, prepare_corpus
from xlstm.run_spec import OptimizerSpec, RunSpec
from xlstm.training.job import TrainJob

TRANSFORMER = TransformerConfig(vocab_size=256, d_model=16, num_blocks=1, num_heads=2, ffn_dim=32)
MLSTM = MLSTMConfig(vocab_size=256, d_model=16, num_blocks=1, num_heads=2, ffn_dim=32, head_dim_qk=4)
STEPS = 24


def tiny_corpus(root: Path) -> Corpus:
    """A few kilobytes of Python, as bytes."""
    (root / "text").mkdir()
    for i in range(20):
        (root / "text" / f"f{i}.txt").write_text(f"def f{i}(x):\n    return x * {i} + {i * i}\n" * 3)
    spec = CorpusSpec(name="tiny", source="files", paths=(str(root / "text"),), validation_fraction=0.25)
    return prepare_corpus(spec, root / "tiny-bytes")


def run_spec(corpus: Corpus) -> RunSpec:
    """24 steps of 64 tokens, validated three times."""
    return RunSpec(
        model=TRANSFORMER,
        data=corpus.spec(),
        optimizer=OptimizerSpec(peak_lr=3e-3, warmup_steps=4, cooldown_steps=4),
        context_length=16,
        batch_size=4,
        steps=STEPS,
        validation_tokens=320,
        validation_every=10,
        seed=3,
    )


def elsewhere(job: TrainJob, name: str, **spec_changes: object) -> TrainJob:
    """The same job in another folder, with another spec if asked."""
    spec = dataclasses.replace(job.spec, **spec_changes)  # type: ignore[arg-type]
    return dataclasses.replace(job, spec=spec, run_dir=job.run_dir.with_name(name))


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    """Those that the run ended with."""
    return torch.load(job.run_dir / "model" / "data" / "model.pt")


def history(job: TrainJob, run_id: str, key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, as MLflow has them."""
    from mlflow.tracking import MlflowClient  # here: the conftest serves tests that go without MLflow

    return sorted((m.step, m.value) for m in MlflowClient(job.tracking_uri).get_metric_history(run_id, key))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: object) -> None:
    """Do something when the batch of a step is fetched; the trainer looks one batch ahead."""
    fetch = TokenStream.batch

    def batch(self: TokenStream, at: int) -> np.ndarray:
        if at == step:
            action()  # type: ignore[operator]
        return fetch(self, at)

    monkeypatch.setattr(TokenStream, "batch", batch)
