"""FLOPs of a prefill and bytes of a decode step exactly as the authors' inference fits count them (PAPER 2.5,
2.6), slips included, so that their fits can be repeated. For our own counts see `xlstm.accounting`.
"""

import numpy as np

from xlstm.accounting import count_parameters
from xlstm.config import MLSTMConfig, ModelConfig

ATTENTION_CAUSAL = 0.65
"""Hard-coded in the repository, whatever its notebooks pass."""
CELL_CAUSAL = 0.75
GENERATED = 100
"""Tokens over which a step time was averaged."""


def prefill_flops(config: ModelConfig, prefill: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """FLOPs up to the first token; `prefill` tokens for each of `batch` sequences. The head runs once."""
    T = np.asarray(prefill, dtype=float)
    d, blocks, n = config.d_model, config.num_blocks, config.num_heads
    around = 8 * d + 6 * d * config.ffn_dim + 2 * config.ffn_dim
    if isinstance(config, MLSTMConfig):
        K, V, L = config.head_dim_qk, config.head_dim_v, config.chunk_size
        token = around + 2 * d * n * (2 * K + V) + 2 * d * n + 2 * n + 4 * d * n * V + 4 * n * V
        mixing = n * T / L * _chunk(L, K, V)
    else:
        token = around + 8 * d * d
        mixing = 2 * ATTENTION_CAUSAL * T**2 * (2 * d + 2.5 * n)
    return batch * (T * blocks * token + blocks * mixing + 2 * d * config.vocab_size)


def _chunk(L: int, K: int, V: int) -> float:
    """One head of the mLSTM over a chunk, "tfla" with the causal factor at every length."""
    triangle = 0.5 * L * (L + 1)
    state = 6 * L + triangle + 5 + 2 * K * V + 2 * L * K * V + 3 * L * K + 2 * K
    inner = CELL_CAUSAL * (8 * L * L + 2 * L + 2 * L * L * (K + V)) + triangle + 2 * L
    outer = 2 * L * K * V + 3 * L * K + 2 * L * V + 4 * L
    return state + inner + outer


def step_bytes(config: ModelConfig, prefill: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Bytes of a decode step after `prefill` tokens.

    The Transformer's are those of 100 tokens over 100, with the weights read once for all of them; the
    mLSTM's are those of one step and do not depend on the prefill.
    """
    T, B = np.asarray(prefill, dtype=float), np.asarray(batch, dtype=float)
    d, blocks, n = config.d_model, config.num_blocks, config.num_heads
    weights = 2.0 * (count_parameters(config) - d * config.vocab_size)
    around = 2 * d + 3 * (d + config.ffn_dim)
    if isinstance(config, MLSTMConfig):
        # The authors' mLSTM reads n_head d norm weights and its gate biases as counted parameters do.
        K, V = config.head_dim_qk, config.head_dim_v
        block = around + d + n * (2 * K + V) + 2 * (d + n) + 2 * (d + n * V) + n * V
        cell = n * ((2 * K + 2 * V + 2) * 2 + 2 * (K * V + K + 1) * 4)
        return weights + B * (2 * (d + blocks * block + 2 * d + config.vocab_size) + blocks * cell)
    elements = d + blocks * (around + (d + 3 * d) + 2 * d) + 2 * d + config.vocab_size
    cache = 1 + T + (GENERATED - 1) / 2
    return weights / GENERATED + B * (2 * elements + blocks * 4 * d * cache)
