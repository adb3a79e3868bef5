"""A process for one case: reads requests from stdin, answers on stdout, a line of JSON each.

    python -P benchmarks/training_worker.py '{"contender": "ours xLSTM", ...}'

`compile` runs a step and frees all of it; `measure` times steps. Ours go through Lightning's trainer and the
training module, as a sweep's trainings do. Peers run in a loop of their own with batches that are on the
device already, and do not see our folders, as two of our packages share names with theirs. Whatever happens
to the process costs its own row.
"""

import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
WARM_UP = 4
STREAM_TOKENS = 4_000_000


def tokens(vocabulary: int) -> np.ndarray:
    """A stream whose next token can be learnt a little: Zipf's frequencies, and every third repeats one."""
    generator = np.random.default_rng(0)
    drawn = generator.zipf(1.3, STREAM_TOKENS) % vocabulary
    drawn[2::3] = (7 * drawn[0::3][: len(drawn[2::3])] + 1) % vocabulary
    return drawn.astype(np.uint16)


def sync() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def fresh() -> None:
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measured(case: Row, seconds: float, steps: int, loss: float) -> Row:
    count = case["sequences"] * case["context_length"]
    return {
        "ms_per_step": 1e3 * seconds / steps,
        "tokens_per_s": count * steps / seconds,
        # What is allocated does not count what a recorded step uses while it runs; what is held does.
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if ON_GPU else None,
        "loss": loss,
        "steps": steps,
    }


def top_kernels(step: Callable[[], Any], count: int = 30) -> list[tuple[str, float, int]]:
    """Of what `step` does: kernels by their time on the device: name, ms, calls."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[: 1 + ON_GPU]) as profile:
        step()
        sync()
    return kernels_of(profile, count)


def kernels_of(profile: Any, count: int) -> list[tuple[str, float, int]]:
    events = profile.key_averages()
    if ON_GPU:
        on_device = [e for e in events if str(e.device_type).endswith("CUDA")]
        times = [(e.key, e.self_device_time_total / 1e3, e.count) for e in on_device]
    else:
        times = [(e.key, e.self_cpu_time_total / 1e3, e.count) for e in events]
    times.sort(key=lambda row: -row[1])
    rest = sum(ms for _, ms, _ in times[count:])
    return [*((name[:110], round(ms, 3), n) for name, ms, n in times[:count]), ("rest", round(rest, 3), 0)]


# Ours ------------------------------------------------------------------------------------------------------


def our_config(case: Row, size: Any) -> Any:
    from xlstm.config import MLSTMConfig, TransformerConfig

    shape = {"vocab_size": case["vocabulary"], "d_model": size.d_model, "num_blocks": size.num_blocks}
    if case["contender"] == "ours xLSTM":
        return MLSTMConfig(
            **shape,
            num_heads=size.mlstm_heads,
            ffn_dim=size.mlstm_ffn,
            head_dim_qk=size.d_model // size.mlstm_heads // 2,
        )
    return TransformerConfig(**shape, num_heads=case["heads"] or size.heads, ffn_dim=size.ffn)


class Clock:
    """A Lightning callback: the time between two steps, and what the profiler saw of one more."""

    def __new__(cls, first: int, last: int, profile: bool) -> Any:
        from lightning.pytorch import Callback

        class _Clock(Callback):
            start = seconds = loss = 0.0
            kernels: list[tuple[str, float, int]] | None = None
            profiler: Any = None

            def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
                step = trainer.global_step
                if step == first:
                    sync()
                    self.start = time.perf_counter()
                if step == last:
                    self.loss = module.step_loss.item()
                    sync()
                    self.seconds = time.perf_counter() - self.start
                    if profile:
                        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
                        self.profiler = torch.profiler.profile(activities=kinds[: 1 + ON_GPU]).__enter__()
                if step == last + 1 and self.profiler is not None:
                    sync()
                    self.profiler.__exit__(None, None, None)
                    self.kernels = kernels_of(self.profiler, 30)

        return _Clock()


def train_ours(
    case: Row,
    steps: int,
    blocks: int | None = None,
    profile: bool = False,
    clock: Any = None,
    share: Any = None,
    strategy: Any = "ddp",
) -> Row:
    """Train for so many steps after the warm-up; `clock`: a callback of the caller's instead of ours.

    `share` (xlstm.training.share): of a training over the first devices of this machine by `strategy`.
    """
    from dataclasses import replace

    from lightning.pytorch import Trainer

    from benchmarks.training_cases import SIZES
    from xlstm.accounting import count_parameters, training_flops
    from xlstm.data import TokenStream
    from xlstm.models import build_model
    from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
    from xlstm.training.blocks import kernels_for
    from xlstm.training.execution import Execution
    from xlstm.training.loading import Batches
    from xlstm.training.module import TrainingModule
    from xlstm.training.share import ALONE
    from xlstm.training.strategies import Environment, strategy_for

    share = share or ALONE
    size = SIZES[case["size"]]
    config = our_config(case, replace(size, num_blocks=blocks or size.num_blocks))
    optimizer = OptimizerSpec(peak_lr=case["lr"], warmup_steps=2, cooldown_steps=0)
    last = WARM_UP + steps
    spec = RunSpec(
        model=config, data=DataSpec(name="", tokenizer="", content_hash=""), optimizer=optimizer,
        context_length=case["context_length"], batch_size=case["sequences"], steps=10**6, validation_tokens=1,
        validation_every=1, seed=0, precision="bf16",
    )  # fmt: skip
    options = {"compile": ON_GPU, **dict(case["options"])}
    micro_batch = options.pop("micro_batch", None)
    execution = Execution(**options).settled(
        spec, on_gpu=ON_GPU, processes=share.ranks, sharded=strategy == "fsdp"
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = build_model(config)
    module = TrainingModule(model, optimizer, 10**6, case["sequences"], micro_batch, share, execution)
    own = Clock(WARM_UP, last, profile)
    strict: Any = "warn" if case["contender"] == "ours xLSTM" else execution.deterministic
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    recorded = bool(execution.cuda_graph)
    trainer = Trainer(
        accelerator="gpu" if ON_GPU else "cpu", devices=share.ranks, precision="bf16-mixed",
        strategy=strategy_for(strategy, share, recorded=recorded), plugins=[Environment(share)],
        max_steps=last + profile, max_epochs=-1, gradient_clip_val=0.5, callbacks=[clock or own],
        deterministic=strict if ON_GPU else None, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    stream = TokenStream(tokens(case["vocabulary"]), case["context_length"], case["sequences"], 0)
    batches = Batches(
        stream,
        lambda: trainer.global_step,
        rows=share.rows(case["sequences"]),
        ahead=execution.prefetch or 0,
        pinned=ON_GPU,
    )
    with kernels_for("bf16", torch.device(DEVICE)):
        trainer.fit(module, batches)
    whole = our_config(case, size)
    row = measured(case, own.seconds, steps, own.loss) if steps and own.seconds else {}
    if own.kernels:
        row["kernels"] = own.kernels
    row["N"] = count_parameters(whole)
    row["flops_per_step"] = training_flops(
        whole, case["context_length"], spec.batch_size * spec.context_length
    )
    row["execution"] = str(execution)
    row["recorded"] = recorded
    return row


# Peers -----------------------------------------------------------------------------------------------------


def peer_model(case: Row) -> tuple[torch.nn.Module, Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]]:
    size = cases_module().SIZES[case["size"]]
    if case["contender"].startswith("Llama"):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=case["vocabulary"], hidden_size=size.d_model, intermediate_size=size.ffn,
            num_hidden_layers=size.num_blocks, num_attention_heads=case["heads"] or size.heads,
            max_position_embeddings=case["context_length"], use_cache=False, attn_implementation="sdpa",
            tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        return torch.compile(model) if ON_GPU else model, lambda m, w: m(input_ids=w, labels=w).loss  # type: ignore[return-value]
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    model = xLSTMLarge(
        xLSTMLargeConfig(
            embedding_dim=size.d_model, num_heads=size.mlstm_heads, num_blocks=size.num_blocks,
            vocab_size=case["vocabulary"], return_last_states=True, mode="train",
            chunkwise_kernel="chunkwise--triton_limit_chunk", autocast_kernel_dtype="bfloat16",
        )
    )  # fmt: skip

    def loss(m: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
        logits = m(windows)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), windows[:, 1:].flatten()
        )

    return model, loss


def cases_module() -> Any:
    """By its path: the folder above holds packages that peers must not find."""
    name = "training_cases"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def train_peer(case: Row, steps: int, profile: bool = False) -> Row:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with torch.device(DEVICE):
        model, loss_of = peer_model(case)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    stream = torch.from_numpy(tokens(case["vocabulary"]).astype(np.int64))
    count = case["sequences"] * case["context_length"]
    batches = [
        stream[i * count % (STREAM_TOKENS - count) :][:count].view(case["sequences"], -1).to(DEVICE)
        for i in range(8)
    ]

    def step(i: int) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = loss_of(model, batches[i % len(batches)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    loss = step(0)
    for i in range(1, WARM_UP if steps else 1):
        loss = step(i)
    sync()
    start = time.perf_counter()
    for i in range(steps):
        loss = step(WARM_UP + i)
    last = loss.item()
    sync()
    row = measured(case, time.perf_counter() - start, steps, last) if steps else {}
    if profile and steps:
        row["kernels"] = top_kernels(lambda: step(0))
    row["N"] = sum(parameter.numel() for parameter in model.parameters())
    return row


def answer(case: Row, request: Row) -> Row:
    fresh()
    begun = time.perf_counter()
    is_ours = case["contender"].startswith("ours")
    if request["kind"] == "compile":
        row = train_ours(case, 0, blocks=1) if is_ours else train_peer(case, 0)
        row = {"compile_s": round(time.perf_counter() - begun, 1)}
    else:
        run = train_ours if is_ours else train_peer
        row = run(case, request["steps"], profile=request.get("profile", False))
        row["total_s"] = round(time.perf_counter() - begun, 1)
    return row


def main() -> None:
    case = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    if case["contender"].startswith("ours"):
        sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        try:
            row = answer(case, json.loads(line))
        except Exception as error:
            text = (str(error).strip().splitlines() or ["no message"])[0]
            row = {"error": f"{type(error).__name__}: {text[:200]}"}
        fresh()
        print(json.dumps(row), file=answers, flush=True)


if __name__ == "__main__":
    main()
