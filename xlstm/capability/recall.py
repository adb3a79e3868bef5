"""Multi-query associative recall: pairs of a key and a value, then keys again, each asked for its value.

Arora et al., *Zoology* (arXiv:2312.04927, section 3 and the appendix on synthetic data), and the memory
capacity test of *xLSTM* (arXiv:2405.04517, section 4.1), accuracy against the number of pairs. There, queries
are spread with noise or padding between them by a power law; here they follow the pairs at once, as many
queries as pairs, so that a sequence is as short as its pairs allow. Its queries are drawn with replacement:
which keys were asked says nothing of the next answer.

Keys and values of a sequence are all different. Who knows the values that were shown, and not which key each
belongs to, is right in one of `pairs` cases.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xlstm.capability.task import IGNORED, TRAINING, Examples, Task


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Task):
    """Levels are pairs. Tokens: values (the answers), then keys, then the padding behind short sequences."""

    kind: Literal["recall"] = "recall"
    keys: int = 64
    values: int = 64
    fewest: int = 2
    """In training, a sequence has this many pairs to `trained`, evenly: the short ones are learned first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = max(self.trained, *self.measured)
        for name in ("keys", "values"):
            if getattr(self, name) < most:
                given = getattr(self, name)
                raise ValueError(f"AssociativeRecall.{name} = {given}: {most} pairs need as many of them")
        if not 1 <= self.fewest <= self.trained:
            raise ValueError(
                f"AssociativeRecall.fewest = {self.fewest}: must lie between 1 and trained = {self.trained}"
            )

    @property
    def vocab_size(self) -> int:
        return self.values + self.keys + 1

    @property
    def padding(self) -> int:
        """The token behind short sequences."""
        return self.values + self.keys

    def length(self, level: int) -> int:
        return 4 * level

    def chance(self, level: int) -> float:
        return 1 / level

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        """Sequences of exactly `level` pairs."""
        return self._draw(rng, np.full(count, level), level)

    def training(self, seed: int, step: int, count: int) -> Examples:
        """Sequences of `fewest` to `trained` pairs, padded to one length."""
        rng = np.random.default_rng((TRAINING, seed, step))
        return self._draw(rng, rng.integers(self.fewest, self.trained + 1, size=count), self.trained)

    def _draw(self, rng: np.random.Generator, pairs: np.ndarray, most: int) -> Examples:
        count, rows = len(pairs), np.arange(len(pairs))[:, None]
        keys = self.values + _different(rng, count, self.keys, most)
        values = _different(rng, count, self.values, most)
        asked = rng.integers(pairs[:, None], size=(count, most))
        shown = np.stack([keys, values], -1).reshape(count, -1)
        queries = np.stack([keys[rows, asked], values[rows, asked]], -1).reshape(count, -1)
        place = np.arange(4 * most)
        start = 2 * pairs[:, None]  # of the queries; what is shown stands before it
        among = np.clip(place - start, 0, 2 * most - 1)
        inputs = np.where(place < start, shown[:, np.minimum(place, 2 * most - 1)], queries[rows, among])
        inputs = np.where(place < 2 * start, inputs, self.padding)
        is_query = (place >= start) & (place < 2 * start) & ((place - start) % 2 == 0)
        answers = queries[rows, np.minimum(among + 1, 2 * most - 1)]
        return Examples(inputs, np.where(is_query, answers, IGNORED))


def _different(rng: np.random.Generator, count: int, kinds: int, most: int) -> np.ndarray:
    """(count, most): the first of a random order of range(kinds), row by row."""
    return np.argsort(rng.random((count, kinds)), 1)[:, :most]
