"""Batches as a pure function of (seed, step): no loader state, so resuming is starting at a step.

An epoch cuts the train tokens, taken as a ring, into windows of one context from a random phase, and visits
every window once in a pseudo-random order: each token is a target once an epoch, but for the T mod context
tokens before the phase, which other epochs reach.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from xlstm.data.spec import CorpusError

ROUNDS = 4
"""Of the Feistel network; four rounds of a good mixer make a permutation that looks random."""


@dataclass(frozen=True, eq=False)
class TokenStream:
    """The training batches of one run, by step."""

    tokens: np.ndarray
    """Train tokens, shape (T,), any integer type."""
    context_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.context_length:
            raise CorpusError(
                f"the train split has {len(self.tokens)} tokens, fewer than one context of"
                f" {self.context_length} and its target; use more text or a shorter context_length"
            )

    @property
    def windows_per_epoch(self) -> int:
        return len(self.tokens) // self.context_length

    def epochs(self, steps: int) -> float:
        """How often `steps` steps go through the train tokens."""
        return steps * self.batch_size * self.context_length / len(self.tokens)

    def batch(self, step: int) -> np.ndarray:
        """The windows of a step, shape (batch_size, context_length + 1), int64: inputs and targets in one."""
        index = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        starts = np.array([self._start(int(i)) for i in index])
        return self._windows(starts)

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self.windows_per_epoch)
        keys = _epoch_keys(self.seed, epoch)
        phase = keys[-1] % len(self.tokens)
        window = permute(position, self.windows_per_epoch, keys[:-1])
        return (phase + window * self.context_length) % len(self.tokens)

    def _windows(self, starts: np.ndarray) -> np.ndarray:
        offsets = np.arange(self.context_length + 1)
        return self.tokens[(starts[:, None] + offsets) % len(self.tokens)].astype(np.int64)


@lru_cache(maxsize=4)
def _epoch_keys(seed: int, epoch: int) -> tuple[int, ...]:
    """ROUNDS keys for the order and one for the phase."""
    digest = hashlib.sha512(f"{seed}:{epoch}".encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS + 1))


def permute(index: int, size: int, keys: tuple[int, ...]) -> int:
    """Where a keyed pseudo-random permutation of range(size) sends `index`, in constant memory.

    A balanced Feistel network permutes the next power of four; an image outside the range is sent on until it
    falls inside, fewer than four times on average.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def validation_windows(tokens: np.ndarray, context_length: int, validation_tokens: int) -> np.ndarray:
    """The fixed held-out set: windows spread evenly over the validation tokens, their targets disjoint.

    Shape (validation_tokens // context_length, context_length + 1), int64. The same for every run with these
    two numbers, whatever its seed. CorpusError where the split is too small.
    """
    count = validation_tokens // context_length
    if count < 1:
        raise CorpusError(
            f"validation.tokens = {validation_tokens} is less than one context of {context_length}"
        )
    if count * context_length + 1 > len(tokens):
        raise CorpusError(
            f"validation.tokens = {validation_tokens}: the validation split has {len(tokens)};"
            " ask for fewer, give more text, or raise data.validation_fraction or data.max_bytes"
        )
    last = len(tokens) - context_length - 1
    starts = np.arange(count, dtype=np.int64) * last // max(count - 1, 1)
    return np.asarray(tokens[starts[:, None] + np.arange(context_length + 1)]).astype(np.int64)
