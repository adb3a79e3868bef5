"""FLOPs of the mLSTM cell, one head: chunkwise (two counts), recurrent, parallel, and the chunkwise backward.

L is the length of a chunk, K and V are the widths of a query and a value head, T is a sequence. The grouping
follows the kernels: gates, state recurrence, inside a chunk, from the state, and what joins them.
"""

from collections.abc import Callable

from xlstm.accounting.conventions import TFLA_CAUSAL_FACTOR, TILE, MixingMode


def sequence(T: int, K: int, V: int, L: int, mode: MixingMode, causal_factor: float | None = None) -> float:
    """A whole sequence under a named count; in chunks of L where the mode is a chunkwise one."""
    if mode == "recurrent":
        return T * recurrent_step(K, V)
    if mode == "parallel":
        return parallel(T, K, V) if causal_factor is None else parallel(T, K, V, causal_factor)
    if mode == "first":
        return in_chunks(T, K, V, L, chunk_first)
    return in_chunks(T, K, V, L, lambda L, K, V: chunk_tfla(L, K, V, causal_factor))


def in_chunks(T: int, K: int, V: int, L: int, chunk: Callable[[int, int, int], float]) -> float:
    """Whole chunks and the rest."""
    whole, rest = divmod(T, L)
    return whole * chunk(L, K, V) + (chunk(rest, K, V) if rest else 0)


def chunk_first(L: int, K: int, V: int) -> float:
    """A chunk, by the first of the paper's two counts: every product of the state counts its gating."""
    triangle = _triangle(L)
    state_gates = triangle + 2 * L + (5 + 5 * L)
    state = 2 * K * V + 4 * L * K * V + 3 * L * K + 2 * K + 4 * L * K
    inner = triangle + L * L * (10 + 2 * K + 2 * V) + 2 * L
    combined = 2 * L + 5 * L + 2 * L * V
    return state_gates + state + inner + combined


def chunk_tfla(L: int, K: int, V: int, causal_factor: float | None = None) -> float:
    """A chunk, by the terms of Tiled Flash Linear Attention.

    `causal_factor` is the share of the L x L matrix that is computed. None: all of it up to a tile of 64,
    three quarters beyond.
    """
    inner = _causal(L, causal_factor) * (L * L * (5 + 2 * K + 2 * V + 3) + 2 * L) + _triangle(L) + 2 * L
    outer = 2 * L * K * V + 3 * L * K
    combined = 2 * L * V + 4 * L
    return state_recurrence(L, K, V) + inner + outer + combined


def state_recurrence(L: int, K: int, V: int) -> float:
    """From one chunk's state to the next, as tfla counts it; the backward pass computes it again."""
    gates = 2 * L + _triangle(L) + 4 * L + 5
    return gates + 2 * K * V + 2 * L * K * V + L * K + 2 * K + 2 * L * K


def chunk_backward(L: int, K: int, V: int, causal_factor: float | None = None) -> float:
    """The backward pass of a chunk, the state of the forward pass computed again."""
    delta_state = _triangle(L) + (L + 1) * 3 + 2 * L + 2 * K * V + 2 * L * K * V + L * K
    gates = L * (L + 1) + 4 * L
    matrix = 2 * L * L * K + 6 * L * L
    gradients = 4 * L * L * (K + V) + 3 * L * L
    inner = _causal(L, causal_factor) * (gates + matrix + gradients)
    outer = 6 * L * K * V + 4 * L * K + 5 * L + 2 * L * K * V
    return state_recurrence(L, K, V) + delta_state + inner + outer


def gate_gradients(T: int, heads: int, K: int) -> float:
    """Gradients of the input and forget gates of a layer, all heads.

    The paper counts the running sum of the forget gates as a triangle of the whole sequence, and once for all
    heads. It is a sum of T terms a head; the count is kept, below 1% of the cell up to T = 16384 as it is.
    """
    return _triangle(T) + 8 * T * heads * K


def recurrent_step(K: int, V: int) -> float:
    """One token, state and output."""
    gates, normalise = 9, 3
    return gates + 4 * K * V + 6 * K + V + normalise + 2 * V * K + K


def parallel(T: int, K: int, V: int, causal_factor: float = TFLA_CAUSAL_FACTOR) -> float:
    """A whole sequence in the quadratic form."""
    gates = _triangle(T) + 2 * T + 6 * T * T
    matrix = causal_factor * (2 * T * T * K + 2 * T * T)
    normalise = causal_factor * (4 * T * T + 2 * T)
    return gates + matrix + normalise + 2 * causal_factor * T * T * V


def _triangle(L: int) -> float:
    return 0.5 * L * (L + 1)


def _causal(L: int, factor: float | None) -> float:
    if factor is not None:
        return factor
    return TFLA_CAUSAL_FACTOR if L > TILE else 1.0
