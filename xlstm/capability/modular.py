"""Modular arithmetic without brackets: 3 - 1 * 4 + 2 ... modulo m, with * before + and -.

Deletang et al. (arXiv:2207.02098, section 4: Modular Arithmetic (Simple), modulus 5) and *xLSTM*
(arXiv:2405.04517, section 4.1, Mod Arithmetic without brackets), a regular language: the value so far and the
value of the product under way are a state of at most m^2. They ask for the value at the end of an expression;
here every prefix that ends in a number is asked.

The first operator is + or -. The first number then adds to every answer, uniformly and independently of all
else, so that whatever does not take it into account is right in exactly one of m cases: a constant, the last
number, the value of everything but the first number.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xlstm.capability.task import IGNORED, Examples, Task, keep_answers

OPERATORS = "+-*"


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Task):
    """Levels are numbers in an expression. Tokens below `modulus` are numbers and answers, the rest
    operators."""

    kind: Literal["modular"] = "modular"
    modulus: int = 5
    operators: str = OPERATORS
    """Some of +, - and *, a + or - among them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulus < 2:
            raise ValueError(f"ModularArithmetic.modulus = {self.modulus}: must be at least 2")
        known = set(self.operators) <= set(OPERATORS) and len(set(self.operators)) == len(self.operators)
        if not known or not set(self.operators) & set("+-"):
            raise ValueError(
                f"ModularArithmetic.operators = {self.operators!r}: give some of + - *, and + or - among them"
            )

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(self.operators)

    def length(self, level: int) -> int:
        return 2 * level - 1

    def chance(self, level: int) -> float:
        return 1 / self.modulus

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        numbers = rng.integers(self.modulus, size=(count, level))
        operators = rng.integers(len(self.operators), size=(count, level - 1))
        additive = [i for i, operator in enumerate(self.operators) if operator != "*"]
        operators[:, 0] = rng.choice(additive, size=count)
        inputs = np.empty((count, self.length(level)), np.int64)
        inputs[:, ::2], inputs[:, 1::2] = numbers, self.modulus + operators
        targets = np.full_like(inputs, IGNORED)
        targets[:, 2::2] = self._values(numbers, operators)
        return Examples(inputs, targets)

    def _values(self, numbers: np.ndarray, operators: np.ndarray) -> np.ndarray:
        """Of every prefix from the second number on, (count, level - 1): ended terms, and the term under
        way."""
        ended, term = np.zeros_like(numbers[:, 0]), numbers[:, 0]
        values = []
        for number, operator in zip(numbers.T[1:], operators.T, strict=True):
            sign = np.array([{"+": 1, "-": -1, "*": 0}[name] for name in self.operators])[operator]
            ended = (ended + term * np.abs(sign)) % self.modulus
            term = np.where(sign == 0, term * number, sign * number) % self.modulus
            values.append((ended + term) % self.modulus)
        return np.stack(values, 1)

    def asked(self, examples: Examples, level: int, above: int) -> Examples:
        """Prefixes of more than `above` numbers."""
        return keep_answers(examples, np.arange(self.length(level)) // 2 + 1 > above)
