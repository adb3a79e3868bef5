"""What a capability run reads: batches by step, and the sets on which it is measured in the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xlstm.capability.domains import open_domains
from xlstm.capability.task import Examples, Task
from xlstm.capability.text import DomainText
from xlstm.data import Corpus, TokenStream, validation_windows
from xlstm.run_spec import RunSpec


class Measured(NamedTuple):
    """A set to measure on: its name, its examples, and the ends of the bands of positions to tell apart."""

    name: str
    examples: Examples
    bands: tuple[int, ...] = ()
    """Empty where only the whole counts."""


@dataclass(frozen=True)
class Generated:
    """Examples of a task with answers, drawn as they are needed."""

    spec: RunSpec
    task: Task

    def batch(self, step: int) -> Examples:
        """Of a training step."""
        return self.task.training(self.spec.seed, step, self.spec.batch_size)

    def held_out(self) -> Examples:
        """What the run's `loss` is of, and its learning rate is chosen by: the trained level."""
        return self.task.selection()

    def measured(self) -> Iterator[Measured]:
        """A set a level, named by it."""
        for level in self.task.measured:
            yield Measured(str(level), self.task.measurement(level))


@dataclass(frozen=True)
class MixedText:
    """Windows of several domains in turn, and held-out windows of each."""

    spec: RunSpec
    task: DomainText
    corpora: list[Corpus]

    @cached_property
    def _streams(self) -> list[TokenStream]:
        length, seed = self.spec.context_length, self.spec.seed
        return [TokenStream(corpus.train, length, 1, seed) for corpus in self.corpora]

    def batch(self, step: int) -> Examples:
        """Windows of a step: each domain has every so manieth."""
        first = step * self.spec.batch_size
        rows = [
            self._streams[i % len(self._streams)].batch(i // len(self._streams))
            for i in range(first, first + self.spec.batch_size)
        ]
        return _shifted(np.concatenate(rows))

    def held_out(self) -> Examples:
        """Windows of all domains in equal parts, of the trained length."""
        parts = [self._domain(corpus) for corpus in self.corpora]
        return Examples(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def measured(self) -> Iterator[Measured]:
        """A set a domain at the trained length, then one of all domains by position."""
        for corpus, domain in zip(self.corpora, self.task.domains, strict=True):
            yield Measured(domain.name, self._domain(corpus))
        length, count = self.task.measured_length, self.task.windows * self.task.measured_length
        windows = [validation_windows(corpus.validation, length, count) for corpus in self.corpora]
        bands = position_bands(self.spec.context_length, length)
        yield Measured("position", _shifted(np.concatenate(windows)), bands)

    def _domain(self, corpus: Corpus) -> Examples:
        return _shifted(
            validation_windows(corpus.validation, self.spec.context_length, self.task.domain_tokens)
        )


Material = Generated | MixedText


def open_material(spec: RunSpec, home: Path) -> Material:
    """What a run reads; text from the domains below `home`. CorpusError where they hold other text."""
    if isinstance(spec.task, DomainText):
        return MixedText(spec, spec.task, open_domains(home, spec.task))
    if spec.task is None:
        raise ValueError("this run has no task: it reads a corpus")
    return Generated(spec, spec.task)


def position_bands(context_length: int, measured_length: int) -> tuple[int, ...]:
    """Ends of bands of positions, two an octave, so that the trained length and its doubles end one each."""
    steps = range(-2 * int(np.log2(context_length)), 2 * int(np.log2(measured_length / context_length)) + 1)
    ends = {max(1, round(context_length * 2 ** (k / 2))) for k in steps}
    return tuple(sorted(ends | {measured_length}))


def _shifted(windows: np.ndarray) -> Examples:
    return Examples(windows[:, :-1], windows[:, 1:])
