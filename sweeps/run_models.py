"""The models of a run table, rebuilt from their shapes, and what they cost to serve."""

from typing import Any

import polars as pl

from sweeps.laws.inference_cost import ServingCost
from sweeps.serving import serving_cost
from xlstm.accounting import build_config, count_parameters
from xlstm.config import ModelConfig

_FFN_MULTIPLES = (64, 32, 16, 8, 128, 256)
"""What ladders round the feed-forward width to; N tells which."""


def serving_costs(runs: pl.DataFrame, tokens: float) -> dict[tuple[str, int], ServingCost]:
    """By (arch, context_length): the cost of generating `tokens` tokens in answers as long as the context.

    Only for groups of runs whose shapes this project can rebuild, which N proves; others are absent.
    """
    costs = {}
    for (arch, context), table in runs.partition_by(["arch", "context_length"], as_dict=True).items():
        configs = [config for row in table.iter_rows(named=True) if (config := config_of(row)) is not None]
        if configs and context:
            unique = list(dict.fromkeys(configs))
            costs[arch, context] = serving_cost(unique, tokens, prompt_length=0, generated_length=context)
    return costs


def config_of(row: dict[str, object]) -> ModelConfig | None:
    """The model of a row of a run table, from its shape and the vocabulary that its embeddings leave over.

    None where the shape is not known, or does not have the row's N: then it is not ours.
    """
    shape: dict[str, Any] = {name: row.get(name) for name in ("d_model", "num_blocks", "num_heads")}
    N, bare, arch = row.get("N"), row.get("N_non_embedding"), str(row.get("arch"))
    if not isinstance(N, float) or not isinstance(bare, float) or None in shape.values():
        return None
    vocab_size = round((N - bare) / (2 * int(str(shape["d_model"]))))  # untied: embedding and head
    for multiple in _FFN_MULTIPLES:
        try:
            config = build_config(arch, vocab_size=vocab_size, ffn_multiple_of=multiple, **shape)
        except ValueError:
            return None
        if count_parameters(config) == N:
            return config
    return None
