"""Switches of execution change no loss: each beside the plain training; recorded steps on a GPU."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from kernels.cross_entropy.linear import CHUNK_BYTES
from xlstm.accounting import training_flops
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.data import TokenStream
from xlstm.models import build_model
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
from xlstm.training.blocks import kernels_for
from xlstm.training.execution import GRAPH_BELOW_FLOPS, PLAIN, Execution
from xlstm.training.gauges import Gauges
from xlstm.training.job import TrainJob
from xlstm.training.loading import Batches
from xlstm.training.memory import FILL, LOSS_CHUNK_BYTES, fitting_micro_batch, predicted_bytes
from xlstm.training.module import TrainingModule, held_out_loss, window_loss
from xlstm.training.optimizer import adamw, learning_rate

CONTEXT, BATCH, STEPS = 24, 6, 8
OPTIMIZER = OptimizerSpec(peak_lr=1e-2, warmup_steps=2, cooldown_steps=2)
SHAPE: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "num_blocks": 3, "num_heads": 2, "ffn_dim": 32}
CONFIGS: dict[str, ModelConfig] = {
    "transformer": TransformerConfig(**SHAPE),
    "mlstm": MLSTMConfig(**SHAPE, head_dim_qk=4),
}
TOKENS = np.random.default_rng(0).integers(50, size=4000)


class Losses(Callback):
    """Keeps them on the device, where they are. `no_waiting`: the later steps may not wait for it."""

    def __init__(self, no_waiting: bool = False) -> None:
        self.steps: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.no_waiting = no_waiting

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(pl_module.step_loss.detach().clone())
        self.norms.append(pl_module.step_grad_norm.detach().clone())
        if self.no_waiting and trainer.global_step in (STEPS // 2, STEPS - 1):
            torch.cuda.set_sync_debug_mode("error" if trainer.global_step == STEPS // 2 else "default")


def trained(
    arch: str,
    execution: Execution,
    micro_batch: int | None = None,
    precision: str = "32-true",
    gpu: bool = False,
    no_waiting: bool = False,
) -> tuple[list[float], list[float], TrainingModule]:
    """Losses and gradient norms of the steps, and what was trained."""
    torch.manual_seed(1)
    module = TrainingModule(
        build_model(CONFIGS[arch]), OPTIMIZER, STEPS, BATCH, micro_batch, execution=execution
    )
    losses = Losses(no_waiting)
    trainer = Trainer(
        accelerator="gpu" if gpu else "cpu", devices=1, max_steps=STEPS, max_epochs=-1, gradient_clip_val=0.5,
        precision=precision, callbacks=[losses], logger=False, enable_checkpointing=False,  # type: ignore[arg-type]
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    stream = TokenStream(TOKENS, CONTEXT, BATCH, seed=5)
    batches = Batches(stream, lambda: trainer.global_step, ahead=execution.prefetch or 0, pinned=gpu)
    with kernels_for("bf16" if "bf16" in precision else "fp32", torch.device("cuda" if gpu else "cpu")):
        trainer.fit(module, batches)  # type: ignore[arg-type]
    return [x.item() for x in losses.steps], [x.item() for x in losses.norms], module


@cache
def plain(arch: str, precision: str = "32-true") -> tuple[list[float], list[float], TrainingModule]:
    """What all others are held against."""
    return trained(arch, PLAIN, precision=precision)


def assert_same(
    a: tuple[list[float], list[float], Any], b: tuple[list[float], list[float], Any], rel: float
) -> None:
    assert len(a[0]) == STEPS
    assert a[0] == pytest.approx(b[0], rel=rel)
    assert a[1] == pytest.approx(b[1], rel=20 * rel)


SWITCHES = {
    "fused loss": replace(PLAIN, fused_loss=True),
    "checkpoints": replace(PLAIN, checkpoint_blocks=True),
    "prefetch": replace(PLAIN, prefetch=3),
    "all": replace(PLAIN, fused_loss=True, checkpoint_blocks=True, prefetch=2),
}  # fmt: skip


@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_losses_are_those_of_the_plain_training(arch: str, name: str, micro_batch: int | None) -> None:
    assert_same(trained(arch, SWITCHES[name], micro_batch), plain(arch), 2e-6)


def test_steps_are_clipped() -> None:
    """A loop in plain PyTorch reaches the same losses; it would not without its clipping."""
    losses, norms, _ = plain("mlstm")
    assert max(norms) > 2 * OPTIMIZER.grad_clip
    for clips in (True, False):
        torch.manual_seed(1)
        model = build_model(CONFIGS["mlstm"])
        optimizer = adamw(model, OPTIMIZER)
        stream, found = TokenStream(TOKENS, CONTEXT, BATCH, seed=5), []
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(
                step, STEPS, OPTIMIZER
            )
            loss = window_loss(model, torch.from_numpy(stream.batch(step)))
            optimizer.zero_grad()
            loss.backward()
            if clips:
                nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.grad_clip)
            optimizer.step()
            found.append(loss.item())
        assert (found == pytest.approx(losses, rel=1e-6)) == clips


@pytest.mark.parametrize("arch", CONFIGS)
def test_compiled_training_is_the_plain_one_and_compiles_a_block_once(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks, one graph, and the evaluation adds none. With checkpoints, as both wrap a block.

    The graph is traced, differentiated and run, but not made into C++, which takes a CPU minutes.
    """
    from torch._dynamo.utils import counters

    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    execution = replace(PLAIN, compile=True, fused_loss=True, checkpoint_blocks=arch == "mlstm")
    compiled = trained(arch, execution)
    graphs = counters["stats"]["unique_graphs"]
    assert_same(compiled, plain(arch), 1e-5)
    windows = torch.from_numpy(TokenStream(TOKENS, CONTEXT, 5, seed=9).batch(0))
    actual = held_out_loss(compiled[2].model, windows, 2, execution=execution)
    assert actual == pytest.approx(held_out_loss(plain(arch)[2].model, windows, 2), rel=1e-5)
    assert (graphs, counters["stats"]["unique_graphs"]) == (1, 1)


@pytest.mark.parametrize("arch", CONFIGS)
def test_bf16_differs_by_rounding_alone(arch: str) -> None:
    execution = replace(PLAIN, fused_loss=True)
    fused = trained(arch, execution, precision="bf16-mixed")
    assert fused[0] == pytest.approx(plain(arch, "bf16-mixed")[0], rel=5e-3)
    assert fused[0] == pytest.approx(plain(arch)[0], rel=1e-2)


def test_weights_keep_their_names_whatever_the_switches() -> None:
    as_written, ready = (TrainingModule(build_model(CONFIGS["mlstm"]), OPTIMIZER, 1, 1, execution=e) for e in
                    (PLAIN, replace(PLAIN, compile=True, checkpoint_blocks=True)))  # fmt: skip
    assert as_written.model.state_dict().keys() == ready.model.state_dict().keys()


@pytest.mark.parametrize("arch", CONFIGS)
def test_checkpoints_hold_less(arch: str) -> None:
    """Bytes that autograd keeps between forward and backward, counted as it asks for them."""

    def kept(execution: Execution) -> int:
        torch.manual_seed(0)
        module = TrainingModule(build_model(CONFIGS[arch]), OPTIMIZER, 1, BATCH, execution=execution)
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if not isinstance(x, nn.Parameter):
                sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module.model(torch.zeros(BATCH, CONTEXT, dtype=torch.long)).sum()
        return sum(sizes.values())

    assert kept(replace(PLAIN, checkpoint_blocks=True)) < 0.6 * kept(PLAIN)


def spec(**changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "model": CONFIGS["mlstm"], "data": DataSpec(name="d", tokenizer="bytes", content_hash="0"),
        "optimizer": OPTIMIZER, "context_length": 1024, "batch_size": 8, "steps": 1000,
        "validation_tokens": 1, "validation_every": 1, "seed": 0,
    }  # fmt: skip
    return RunSpec(**(fields | changes))


def test_settled_by_device_and_size() -> None:
    small = spec()
    large = spec(model=replace(CONFIGS["mlstm"], d_model=2048, vocab_size=50304), batch_size=256)
    assert Execution().settled(small, on_gpu=False) == PLAIN
    assert Execution().settled(small, on_gpu=True) == Execution(
        compile=False, cuda_graph=True, fused_loss=True, prefetch=2
    )
    settled = Execution().settled(large, on_gpu=True)
    assert (settled.compile, settled.cuda_graph) == (True, False)
    assert Execution().settled(large, on_gpu=False).fused_loss
    chosen = Execution(compile=True, cuda_graph=False, fused_loss=False, prefetch=5, deterministic=False)
    assert chosen.settled(small, on_gpu=False) == chosen


def test_replicas_record_their_parts_of_a_step_and_shards_nothing() -> None:
    small = spec()
    assert Execution().settled(small, on_gpu=True, processes=2).cuda_graph
    assert Execution().settled(small, on_gpu=True, sharded=True).cuda_graph  # of one process: nothing is
    for chosen in (Execution(), Execution(cuda_graph=True)):
        assert not chosen.settled(small, on_gpu=True, processes=2, sharded=True).cuda_graph
    step = training_flops(small.model, small.context_length, small.batch_size * small.context_length)
    whole = ceil(GRAPH_BELOW_FLOPS / step) * small.batch_size
    large = spec(batch_size=whole)
    assert [Execution().settled(large, on_gpu=True, processes=n).cuda_graph for n in (1, 2)] == [False, True]
    assert not Execution().settled(spec(batch_size=2 * whole), on_gpu=True, processes=2).cuda_graph


def test_prefetched_batches_are_the_streams_own_and_start_where_the_trainer_stands() -> None:
    stream = TokenStream(TOKENS, CONTEXT, BATCH, seed=5)
    made = iter(Batches(stream, lambda: 7, ahead=2, rows=slice(1, 3)))
    for step in range(7, 20):
        assert np.array_equal(next(made), stream.batch(step)[1:3])
    made.close()  # type: ignore[attr-defined]
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_an_error_of_the_stream_comes_with_its_batch() -> None:
    class Broken:
        numbers: Iterator[int] = count()

        def batch(self, step: int) -> np.ndarray:
            if step == 2:
                raise OSError("shard gone")
            return np.full((1, 2), step)

    made = iter(Batches(Broken(), lambda: 0, ahead=4))  # type: ignore[arg-type]
    assert [int(next(made)[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="shard gone"):
        next(made)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_steps_are_the_plain_ones(arch: str, micro_batch: int | None, compiled: bool) -> None:
    execution = replace(PLAIN, cuda_graph=True, fused_loss=True, compile=compiled, prefetch=2)
    for precision, tolerance in (("32-true", 1e-5), ("bf16-mixed", 5e-3)):
        recorded = trained(arch, execution, micro_batch, precision, gpu=True)
        assert recorded[0] == pytest.approx(trained(arch, PLAIN, None, precision, gpu=True)[0], rel=tolerance)


@pytest.mark.parametrize("arch", CONFIGS)
def test_a_larger_micro_batch_is_foretold_more_memory_and_the_largest_that_fits_is_taken(arch: str) -> None:
    run = spec(model=CONFIGS[arch], precision="bf16")
    for execution in (Execution().settled(run, on_gpu=True), PLAIN):
        needs = {n: predicted_bytes(run, n, execution) for n in (1, 2, 4, 8)}
        assert sorted(needs.values()) == list(needs.values())
        assert fitting_micro_batch(run, execution, 1.1 * needs[8]) is None
        assert fitting_micro_batch(run, execution, 0.999 * needs[8] / FILL) == 4
        assert fitting_micro_batch(run, execution, needs[2] / FILL) == 2
        assert fitting_micro_batch(run, execution, 1.0) == 1
    recorded = replace(PLAIN, cuda_graph=True)
    assert predicted_bytes(run, 8, recorded) > predicted_bytes(run, 8, PLAIN)  # room for an evaluation
    less = replace(PLAIN, checkpoint_blocks=True)
    assert predicted_bytes(run, 8, less) < predicted_bytes(run, 8, PLAIN)


def test_the_chunk_that_is_foretold_is_that_of_the_kernel() -> None:
    assert LOSS_CHUNK_BYTES == CHUNK_BYTES


def test_gauges_of_a_cpu_say_nothing_and_mfu_is_flops_over_the_peak() -> None:
    run = spec()
    assert Gauges(run, torch.device("cpu"), None).read(1e6) == {}
    gauges = Gauges(run, torch.device("cpu"), peak=1e12, processes=2)
    flops = training_flops(run.model, run.context_length, run.context_length) / run.context_length
    assert gauges.read(5000.0) == {"mfu": pytest.approx(5000.0 * flops / 2e12)}
    assert gauges.overall_power_w() is None


def test_a_job_keeps_its_switches_on_the_way_to_its_process(tmp_path: Path) -> None:
    job = TrainJob(
        spec=spec(), data_folder=tmp_path, run_dir=tmp_path, tracking_uri="", experiment="", run_name="",
        execution=Execution(compile=True, deterministic=False), gpu_share=0.25, cache_folder=tmp_path / "c",
    )  # fmt: skip
    assert TrainJob.from_json(job.to_json()) == job


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("arch", CONFIGS)
def test_a_gpu_trains_as_a_cpu_does(arch: str) -> None:
    """Its fused gates, norms and feed-forward layers, and its kernels, compute what the CPU computes."""
    execution = Execution(compile=True, cuda_graph=True, fused_loss=True, prefetch=2)
    there, here = trained(arch, execution, gpu=True), plain(arch)
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    assert there[1] == pytest.approx(here[1], rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_does_not_wait_for_the_device(arch: str, recorded: bool) -> None:
    """Torch raises where the host would."""
    execution = replace(PLAIN, cuda_graph=recorded, fused_loss=True, prefetch=2)
    try:
        trained(arch, execution, precision="bf16-mixed", gpu=True, no_waiting=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
