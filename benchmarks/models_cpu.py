"""Time of one training step on a CPU, mLSTM beside Transformer of the same size: the quick profile's sizes.

    python benchmarks/models_cpu.py [--repeats 30] [--json results.json]

Forward, backward and AdamW of one batch (8 sequences of 128 bytes), one thread, in time of the CPU, so that
other processes matter less. The models take turns; the ratio is the median over pairs of neighbouring steps.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from xlstm.accounting import count_parameters, mlstm_config, training_flops, transformer_config
from xlstm.config import ModelConfig
from xlstm.models import build_model, next_token_loss

BATCH, CONTEXT, VOCABULARY = 8, 128, 256
WIDTHS = (16, 24, 32, 48, 64, 96)


def training_step(config: ModelConfig) -> Callable[[], None]:
    """One step on the same random batch, its optimiser state included."""
    torch.manual_seed(0)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1))

    def step() -> None:
        optimizer.zero_grad()
        next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        optimizer.step()

    return step


def cpu_seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def compare(d_model: int, repeats: int) -> dict[str, Any]:
    shape = {
        "vocab_size": VOCABULARY,
        "d_model": d_model,
        "num_blocks": 2,
        "num_heads": 2,
        "ffn_multiple_of": 8,
    }
    configs: tuple[ModelConfig, ModelConfig] = (mlstm_config(**shape), transformer_config(**shape))
    steps = [training_step(config) for config in configs]
    for _ in range(5):
        [step() for step in steps]
    pairs = [(cpu_seconds(steps[0]), cpu_seconds(steps[1])) for _ in range(repeats)]
    mlstm, transformer = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "d_model": d_model,
        "N_mlstm": count_parameters(configs[0]),
        "N_transformer": count_parameters(configs[1]),
        "mlstm_ms": 1e3 * mlstm,
        "transformer_ms": 1e3 * transformer,
        "ratio": statistics.median(a / b for a, b in pairs),
        "mlstm_flops_per_s": training_flops(configs[0], CONTEXT, BATCH * CONTEXT) / mlstm,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| d | N mLSTM | N Transformer | mLSTM ms | Transformer ms | ratio | mLSTM GFLOP/s |")
    print("|---|---|---|---|---|---|---|")
    for d_model in WIDTHS:
        row = compare(d_model, arguments.repeats)
        rows.append(row)
        print(
            f"| {d_model} | {row['N_mlstm']} | {row['N_transformer']} | {row['mlstm_ms']:.2f} |"
            f" {row['transformer_ms']:.2f} | {row['ratio']:.2f} | {row['mlstm_flops_per_s'] / 1e9:.1f} |",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
