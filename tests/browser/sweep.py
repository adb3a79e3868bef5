"""A sweep of both architectures at two context lengths whose FLOPs a token are not 6 N."""

from typing import Any

import numpy as np
import polars as pl

from reports import Provenance
from tests.reports import synthetic
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.config import ModelConfig

_WIDTHS = (16, 24, 32, 48, 64, 96)


def run_table() -> pl.DataFrame:
    """Attention and heads make a token dearer than 6 N, small models most."""
    table = synthetic.run_table(contexts=(128, 512))
    dearer = 1 + pl.col("context_length") / 2000 + 20 / pl.col("N").sqrt()
    return table.with_columns(train_flops=pl.col("train_flops") * dearer)


def curves(table: pl.DataFrame) -> pl.DataFrame:
    """A history of each run: 20 points that end at its loss."""
    shape = np.geomspace(1.0, 1e-3, 20)
    parts = [
        pl.DataFrame({"run_key": [key] * 20, "D": np.geomspace(D / 100, D, 20), "loss": loss + 2 * shape})
        for key, D, loss in table.select("run_key", "D", "loss").iter_rows()
    ]
    return pl.concat(parts)


def models() -> list[ModelConfig]:
    shapes: list[dict[str, Any]] = [
        {"d_model": width, "num_blocks": 2, "num_heads": 2, "vocab_size": 256, "ffn_multiple_of": 8}
        for width in _WIDTHS
    ]
    return [make(**shape) for shape in shapes for make in (mlstm_config, transformer_config)]


def provenance(**changes: object) -> Provenance:
    return synthetic.provenance(**{"models": models(), **changes})
