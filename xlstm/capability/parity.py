"""Parity: has a prefix an odd number of ones? The simplest task that needs a state to be tracked.

Deletang et al., *Neural Networks and the Chomsky Hierarchy* (arXiv:2207.02098, section 4: Parity Check, a
regular language), and the formal languages of *xLSTM* (arXiv:2405.04517, section 4.1), which trains on
lengths to 40 and measures up to 256. Both ask once, at the end of a string; here every prefix is asked for
its parity, which is the same question at every length at once and costs a fraction of the training.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xlstm.capability.task import Examples, Task, keep_answers


@dataclass(frozen=True, kw_only=True)
class Parity(Task):
    """Levels are lengths. Tokens 0 and 1 are bits and answers."""

    kind: Literal["parity"] = "parity"

    least_level = 1

    @property
    def vocab_size(self) -> int:
        return 2

    def length(self, level: int) -> int:
        return level

    def chance(self, level: int) -> float:
        """Each bit is fair and independent, so every parity is too, given all bits but one."""
        return 0.5

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        bits = rng.integers(2, size=(count, level))
        return Examples(bits, np.cumsum(bits, 1) % 2)

    def asked(self, examples: Examples, level: int, above: int) -> Examples:
        """Prefixes of more than `above` bits; a single bit is its own parity, and is not asked."""
        return keep_answers(examples, np.arange(1, level + 1) > max(above, 1))
