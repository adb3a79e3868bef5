"""Would other settings change what the sweep on the H100 found? One rung of the profile gpu, varied.

    python -m benchmarks.sweep_settings --corpus FOLDER --json rows.json [--steps 300] [--at-once 10]

The rung of width 128 with 4 blocks at 6e14 FLOPs, as the profile trains it, and the same with other heads,
learning rates, wider queries and keys, and an open input gate. All train at the same time, each in a process
of its own, through MPS where that is installed. The loss is the sweep's: held out, on as many tokens.
A row is written when it is there. `--steps` shortens all of them; on a CPU, to see that it works.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import about, sentence
from benchmarks.training_step import write
from tasks.mps import shared_gpus
from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.data import TokenStream, load_corpus, validation_windows
from xlstm.models import build_model
from xlstm.models.mlstm import GateLinear
from xlstm.run_spec import OptimizerSpec, RunSpec
from xlstm.training.blocks import kernels_for
from xlstm.training.execution import Execution
from xlstm.training.loading import Batches
from xlstm.training.module import TrainingModule, held_out_loss

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
STEPS = {"mlstm": 1070, "transformer": 980}
"""What 6e14 FLOPs pay for at the batch of that budget."""
VARIANTS: dict[str, Row] = {
    "mLSTM, 2 heads of 32/64 (the sweep's)": {},
    "mLSTM, 1 head of 64/128": {"num_heads": 1, "head_dim_qk": 64},
    "mLSTM, 4 heads of 16/32": {"num_heads": 4, "head_dim_qk": 16},
    "mLSTM, 2 heads of 64/64": {"head_dim_qk": 64},
    "mLSTM, half the learning rate": {"rate": 0.5},
    "mLSTM, a quarter of the learning rate": {"rate": 0.25},
    "mLSTM, 1 head, half the learning rate": {"num_heads": 1, "head_dim_qk": 64, "rate": 0.5},
    "mLSTM, input gates begin at -2, not -10": {"input_gate": -2.0},
    "Transformer, 2 heads of 64 (the sweep's)": {"arch": "transformer"},
    "Transformer, half the learning rate": {"arch": "transformer", "rate": 0.5},
}


def spec_of(variant: Row, corpus: Any, steps: int | None) -> RunSpec:
    """The sweep's run, changed; a change of the shape leaves its number of steps."""
    arch = variant.get("arch", "mlstm")
    shape: dict[str, Any] = {"vocab_size": 8192, "d_model": 128, "num_blocks": 4, "ffn_dim": 352}
    heads = variant.get("num_heads", 2)
    model = (
        TransformerConfig(**shape, num_heads=heads)
        if arch == "transformer"
        else MLSTMConfig(**shape, num_heads=heads, head_dim_qk=variant.get("head_dim_qk", 32))
    )
    count = min(STEPS[arch], steps or STEPS[arch])
    optimizer = OptimizerSpec(
        peak_lr=3e-3 * math.sqrt(768 / 128) * variant.get("rate", 1.0),
        warmup_steps=math.ceil(0.05 * count),
        cooldown_steps=math.ceil(0.1 * count),
        weight_decay=0.1,
        grad_clip=0.5,
    )
    return RunSpec(
        model=model, data=corpus.spec, optimizer=optimizer, context_length=512, batch_size=94, steps=count,
        validation_tokens=524_288, validation_every=count, seed=0, precision="bf16",
    )  # fmt: skip


def trained(name: str, folder: Path, steps: int | None) -> Row:
    """Train one variant in this process: its loss, held out and in training."""
    from lightning.pytorch import Trainer

    corpus = load_corpus(folder)
    variant = VARIANTS[name]
    spec = spec_of(variant, corpus, steps)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    execution = replace(Execution(compile=False).settled(spec, on_gpu=on_gpu), deterministic=False)
    torch.manual_seed(spec.seed)
    model = build_model(spec.model)
    if "input_gate" in variant:
        for part, gate in model.named_modules():
            if isinstance(gate, GateLinear) and part.endswith("igate_preact"):
                torch.nn.init.constant_(gate.bias, variant["input_gate"])
    module = TrainingModule(model, spec.optimizer, spec.steps, spec.batch_size, execution=execution)
    stream = TokenStream(corpus.train, spec.context_length, spec.batch_size, spec.seed)
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu", devices=1, max_steps=spec.steps, max_epochs=-1,
        precision="bf16-mixed", gradient_clip_val=spec.optimizer.grad_clip, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    batches = Batches(stream, lambda: trainer.global_step, ahead=execution.prefetch or 0, pinned=on_gpu)
    begun = time.monotonic()
    windows = torch.from_numpy(
        validation_windows(corpus.validation, spec.context_length, spec.validation_tokens)
    )
    with kernels_for(spec.precision, device):
        trainer.fit(module, batches)
        module.to(device)
        context = torch.autocast(device.type, dtype=torch.bfloat16)
        loss = held_out_loss(module.model, windows.to(device), 64, context, execution=execution)
    assert module.step_loss is not None
    return {
        "loss": loss, "last_training_loss": module.step_loss.item(), "steps": spec.steps,
        "peak_lr": spec.optimizer.peak_lr, "seconds": time.monotonic() - begun,
    }  # fmt: skip


def line(row: Row) -> str:
    if "error" in row:
        return f"| {row['variant']} | {row['error']} |"
    losses = f"{row['loss']:.3f} | {row['last_training_loss']:.3f}"
    return f"| {row['variant']} | {row['steps']} | {row['peak_lr']:.4f} | {losses} |"


def run(options: argparse.Namespace) -> list[Row]:
    found = about("torch", "triton")
    print(sentence(found))
    print("\n| variant | steps | peak lr | validation loss | last training loss |\n|---|---|---|---|---|")
    rows: list[Row] = []

    def one(name: str, environment: dict[str, str]) -> Row:
        command = [sys.executable, "-m", "benchmarks.sweep_settings", "--worker", name]
        command += ["--corpus", str(options.corpus)]
        command += ["--steps", str(options.steps)] if options.steps else []
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return {"variant": name, "error": f"code {done.returncode}: {lines[-1][:200] if lines else ''}"}
        return {"variant": name, **json.loads(done.stdout.strip().splitlines()[-1])}

    names = [name for name in VARIANTS if not options.only or any(word in name for word in options.only)]
    with tempfile.TemporaryDirectory() as scratch, shared_gpus(Path(scratch) / "mps") as variables:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        with ThreadPoolExecutor(options.at_once) as pool:
            for future in as_completed([pool.submit(one, name, environment) for name in names]):
                row = future.result()
                rows.append(row)
                print(line(row), flush=True)
                if options.json:
                    write(options.json, {"about": found, "rows": rows})
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a prepared corpus: data/NAME of a state")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, help="of every variant, at most")
    parser.add_argument("--at-once", type=int, default=len(VARIANTS))
    parser.add_argument("--only", nargs="*", help="variants whose names hold one of these")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.corpus = options.corpus.resolve()
    if options.worker:
        print(json.dumps(trained(options.worker, options.corpus, options.steps)))
        return 0
    return 1 if any("error" in row for row in run(options)) else 0


if __name__ == "__main__":
    sys.exit(main())
