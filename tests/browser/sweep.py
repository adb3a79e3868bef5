"""A sweep of both architectures at two context lengths whose FLOPs a token are not 6 N."""

from itertools import product

import numpy as np
import polars as pl

from reports import Provenance
from tests.reports import synthetic
from xlstm.accounting import count_parameters, mlstm_config, training_flops, transformer_config
from xlstm.config import ModelConfig

CONTEXTS = (128, 512)
_MAKERS = {"mlstm": mlstm_config, "transformer": transformer_config}
_WIDTHS = (16, 24, 32, 48, 64, 96)


def models() -> list[ModelConfig]:
    return [
        make(d_model=width, num_blocks=2, num_heads=2, vocab_size=256, ffn_multiple_of=8)
        for make in _MAKERS.values()
        for width in _WIDTHS
    ]


def run_table() -> pl.DataFrame:
    """Real models with their own FLOPs, losses from the synthetic surfaces."""
    rng = np.random.default_rng(7)
    cells = product(models(), CONTEXTS, synthetic.BUDGETS)
    return pl.DataFrame([_run(rng, *cell) for cell in cells])


def _run(rng: np.random.Generator, config: ModelConfig, context: int, budget: float) -> dict[str, object]:
    N = count_parameters(config)
    row = synthetic.run(rng, config.arch, context, budget, N)
    tokens = budget / training_flops(config, context, 1.0)
    steps = max(1, round(tokens / (8 * context)))
    D = steps * 8.0 * context
    loss = float(synthetic.surface(config.arch, np.float64(N), np.float64(D)) + 0.004 * rng.standard_normal())
    shape = {"d_model": config.d_model, "num_blocks": config.num_blocks, "num_heads": config.num_heads}
    return (
        row
        | shape
        | {
            "N_non_embedding": float(count_parameters(config, embedding=False)),
            "D": D,
            "steps": steps,
            "train_flops": training_flops(config, context, D),
            "loss": loss,
        }
    )


def curves(table: pl.DataFrame) -> pl.DataFrame:
    """A history of each run: 20 points that end at its loss."""
    shape = np.geomspace(1.0, 1e-3, 20)
    parts = [
        pl.DataFrame({"run_key": [key] * 20, "D": np.geomspace(D / 100, D, 20), "loss": loss + 2 * shape})
        for key, D, loss in table.select("run_key", "D", "loss").iter_rows()
    ]
    return pl.concat(parts)


def provenance(**changes: object) -> Provenance:
    return synthetic.provenance(**changes)
