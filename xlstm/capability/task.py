"""What generated tasks share: levels of difficulty, seeded draws, and which positions hold an answer.

A task is a frozen dataclass, part of the RunSpec. Its examples are pure functions of (purpose, seed, step):
no file, no state, and the same on every machine. A model reads `inputs` and is asked for `targets`; positions
that hold no answer are IGNORED, by the loss as by the measurements.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

IGNORED = -100
"""Target of a position that holds no answer; torch's cross-entropy leaves it out."""
TRAINING, SELECTION, MEASUREMENT = range(3)
"""Purposes of draws. Their random streams are independent: nothing measured was trained on or selected by."""


class Examples(NamedTuple):
    """Sequences of a task, int64, (count, length) both."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A generated task at several levels: lengths, items or pairs, whatever makes it harder."""

    trained: int
    """The level up to which the model is trained."""
    measured: tuple[int, ...]
    """Levels at which it is measured, ascending: of tasks that answer at every position, an entry stands for
    the answers beyond the one before it."""
    examples: int = 512
    """Sequences measured at a level."""
    version: int = 1
    """Raise it when the same draw gives other examples."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.trained < self.least_level:
            raise ValueError(f"{name}.trained = {self.trained}: must be at least {self.least_level}")
        if not self.measured or list(self.measured) != sorted(set(self.measured)):
            raise ValueError(f"{name}.measured = {list(self.measured)}: give ascending levels")
        if self.measured[0] < self.least_level:
            raise ValueError(f"{name}.measured = {self.measured[0]}: must be at least {self.least_level}")
        if self.examples < 1:
            raise ValueError(f"{name}.examples = {self.examples}: must be positive")

    least_level = 2
    """The lowest level that has an answer."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens of inputs and answers together."""

    @abstractmethod
    def length(self, level: int) -> int:
        """Tokens of a sequence at a level."""

    @abstractmethod
    def chance(self, level: int) -> float:
        """Accuracy at a measured level of the best guess that knows nothing of the rule."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        """`count` sequences at a level, with every answer that a model is trained on."""

    def asked(self, examples: Examples, level: int, above: int) -> Examples:
        """The same sequences with the answers alone that count at a level, where `above` is the level
        below."""
        return examples

    def training(self, seed: int, step: int, count: int) -> Examples:
        """The batch of a training step."""
        return self.draw(np.random.default_rng((TRAINING, seed, step)), count, self.trained)

    def selection(self, count: int | None = None) -> Examples:
        """Held-out sequences at the trained level, the same for every run: learning rates are chosen by
        them."""
        rng = np.random.default_rng((SELECTION, self.trained, self.version))
        return self.draw(rng, count or self.examples, self.trained)

    def measurement(self, level: int) -> Examples:
        """What is measured at one of the levels, the same for every run."""
        rng = np.random.default_rng((MEASUREMENT, level, self.version))
        return self.asked(self.draw(rng, self.examples, level), level, self.below(level))

    def below(self, level: int) -> int:
        """The measured level before this one, 0 before the first."""
        return max((other for other in self.measured if other < level), default=0)


def keep_answers(examples: Examples, kept: np.ndarray) -> Examples:
    """The same sequences, asked only where `kept`, broadcast to (count, length), is true."""
    return Examples(examples.inputs, np.where(kept, examples.targets, IGNORED))
