"""Nearest-neighbour search: which value belongs to the item nearest to the query so far?

*xLSTM* (arXiv:2405.04517, figure 2 left and appendix): a reference vector comes first, then items with a
vector and a value each; the model must hold the value of the most similar item seen, and revise it whenever a
nearer one comes. There, unit vectors of the plane and real values enter as numbers, and the loss is a squared
error. Here a language model reads them: an angle is one of `angles` equal steps of the circle, a value one of
`values` classes, and an item is one token for both. The answer is due after every item.

Measured are the answers that need both storing and revising: the nearest item is neither the one just read
(copying it would do) nor the first (keeping what was stored first would do).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from xlstm.capability.task import IGNORED, Examples, Task, keep_answers

DRAWS = 20_000
"""Of the estimate of the chance level: its standard error is below 0.002."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbour(Task):
    """Levels are items. Tokens: values (the answers), then query angles, then an item for every angle and
    value."""

    kind: Literal["search"] = "search"
    angles: int = 32
    values: int = 8

    least_level = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("angles", "values"):
            if getattr(self, name) < 2:
                raise ValueError(f"NearestNeighbour.{name} = {getattr(self, name)}: must be at least 2")

    @property
    def vocab_size(self) -> int:
        return self.values + self.angles + self.angles * self.values

    def length(self, level: int) -> int:
        return 1 + level

    def chance(self, level: int) -> float:
        """Of counting the values seen and naming the most frequent: what knows the values and not the angles.

        More than 1 in `values`, which a constant and a copier get: the answer is among the values seen.
        """
        items = range(max(self.below(level), 2) + 1, level + 1)
        # An answer after t items is asked with probability (t - 2) / t: all but the first and the last count.
        weights = [(t - 2) / t for t in items]
        return float(np.average([_most_frequent(t, self.values) for t in items], weights=weights))

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        query = rng.integers(self.angles, size=(count, 1))
        angles = rng.integers(self.angles, size=(count, level))
        values = rng.integers(self.values, size=(count, level))
        answers = np.take_along_axis(values, self._nearest(query, angles), 1)
        items = self.values + self.angles + angles * self.values + values
        inputs = np.concatenate([self.values + query, items], 1)
        return Examples(inputs, np.concatenate([np.full_like(query, IGNORED), answers], 1))

    def _nearest(self, query: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """Index of the nearest item after each, (count, items); of equally near ones the first."""
        apart = np.abs(angles - query)
        distance = np.minimum(apart, self.angles - apart)
        best = np.minimum.accumulate(distance, 1)
        nearer = np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] < best[:, :-1]], 1)
        return np.maximum.accumulate(np.where(nearer, np.arange(angles.shape[1]), 0), 1)

    def asked(self, examples: Examples, level: int, above: int) -> Examples:
        """After more than `above` items, where the nearest is neither the last one nor the first."""
        inputs = examples.inputs
        query, items = inputs[:, :1] - self.values, inputs[:, 1:] - self.values - self.angles
        nearest = self._nearest(query, items // self.values)
        place = np.arange(level)
        kept = (nearest != place) & (nearest != 0) & (place >= above)
        return keep_answers(examples, np.concatenate([np.zeros_like(kept[:, :1]), kept], 1))


@cache
def _most_frequent(items: int, values: int) -> float:
    """Expected share of the most frequent of `values` classes among `items` uniform draws."""
    rng = np.random.default_rng((items, values))
    counts = rng.multinomial(items, np.full(values, 1 / values), size=DRAWS)
    return float(counts.max(1).mean() / items)
