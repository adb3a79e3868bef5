"""Replicas on two GPUs, over NCCL: recorded steps are those that the host launches."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.data import TokenStream
from xlstm.models import build_model
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
from xlstm.training.blocks import kernels_for
from xlstm.training.execution import PLAIN, Execution
from xlstm.training.job import RunResult, TrainJob
from xlstm.training.loading import Batches
from xlstm.training.module import TrainingModule
from xlstm.training.share import Share
from xlstm.training.strategies import Environment, strategy_for
from xlstm.training.together import train_together

CONTEXT, BATCH, STEPS = 64, 5, 8
OPTIMIZER = OptimizerSpec(peak_lr=1e-3, warmup_steps=2, cooldown_steps=2)
SHAPE: dict[str, Any] = {"vocab_size": 4096, "d_model": 128, "num_blocks": 2, "num_heads": 2, "ffn_dim": 256}
"""An embedding of 2 MiB, whose gradient travels alone."""
CONFIGS: dict[str, ModelConfig] = {
    "transformer": TransformerConfig(**SHAPE),
    "mlstm": MLSTMConfig(**SHAPE, head_dim_qk=32),
}
MICRO_BATCHES = {"transformer": 1, "mlstm": None}
"""Shares of 2 and 3 sequences: in parts, of which the smaller share's last has no weight, and at once."""
LAUNCHED = replace(PLAIN, fused_loss=True)
RECORDED = replace(LAUNCHED, cuda_graph=True)


class Curve(Callback):
    """Loss and gradient norm of every step."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.values.append((pl_module.step_loss.item(), pl_module.step_grad_norm.item()))


def curve(arch: str, execution: Execution, job: TrainJob, share: Share) -> list[tuple[float, float]]:
    torch.manual_seed(1 + share.rank)  # the first one's weights are those of all
    module = TrainingModule(
        build_model(CONFIGS[arch]), OPTIMIZER, STEPS, BATCH, MICRO_BATCHES[arch], share, execution
    )
    found = Curve()
    trainer = Trainer(
        accelerator="gpu" if "cuda" in job.device else "cpu", devices=share.ranks, gradient_clip_val=0.5,
        strategy=strategy_for("ddp", share, recorded=bool(execution.cuda_graph)),
        plugins=[Environment(share)], max_steps=STEPS, max_epochs=-1, callbacks=[found], logger=False,
        enable_checkpointing=False, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    stream = TokenStream(np.arange(40_000) * 7 % 4096, CONTEXT, BATCH, seed=5)
    batches = Batches(stream, lambda: trainer.global_step, rows=share.rows(BATCH))
    with kernels_for("fp32", torch.device(job.device)):
        trainer.fit(module, batches)  # type: ignore[arg-type]
    return found.values


def curves(job: TrainJob, share: Share) -> RunResult:
    """What each process does: both architectures both ways, in one process, as starting one takes longest."""
    found = {
        arch: [curve(arch, execution, job, share) for execution in (LAUNCHED, RECORDED)] for arch in CONFIGS
    }
    (job.run_dir / f"{share.rank}.json").write_text(json.dumps(found))
    return RunResult(run_key=job.spec.run_key, status="finished")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_recorded_replicas_train_as_launched_ones(tmp_path: Path) -> None:
    spec = RunSpec(
        model=CONFIGS["mlstm"], data=DataSpec(name="", tokenizer="", content_hash=""), optimizer=OPTIMIZER,
        context_length=CONTEXT, batch_size=BATCH, steps=STEPS, validation_tokens=1, validation_every=1,
        seed=0,
    )  # fmt: skip
    job = TrainJob(
        spec=spec, data_folder=tmp_path, run_dir=tmp_path, tracking_uri="", experiment="", run_name="",
        device="cuda:0", peers=("cuda:1",),
    )  # fmt: skip
    train_together(job, curves)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for arch, (launched, recorded) in first.items():
        losses, norms = zip(*launched, strict=True)
        assert [loss for loss, _ in recorded] == pytest.approx(losses, rel=1e-5), arch
        assert [norm for _, norm in recorded] == pytest.approx(norms, rel=2e-4), arch
        assert losses[-1] < losses[0]
