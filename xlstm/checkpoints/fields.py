"""Fields of an official configuration, read with care: what we cannot compute is refused by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlstm.checkpoints.errors import CheckpointError


@dataclass(frozen=True)
class Fields:
    """A configuration and where it came from."""

    values: Mapping[str, Any]
    source: str

    def number(self, *names: str, default: float | None = None) -> float:
        """The first of these that is there and not null, a finite number."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and -math.inf < value < math.inf):
                raise CheckpointError(f"{self.source}: {name} = {value!r}: a number is due")
            return value
        if default is None:
            raise CheckpointError(f"{self.source}: has no {names[0]}")
        return default

    def whole(self, *names: str, default: int | None = None) -> int:
        """As `number`, a whole one of at least 1."""
        value = self.number(*names, default=default)
        if value != int(value) or value < 1:
            raise CheckpointError(f"{self.source}: {names[0]} = {value!r}: must be a whole number from 1")
        return int(value)

    def soft_cap(self, name: str, default: float) -> float:
        """A number above 0. Null is refused: the official code caps nothing then, our model always does."""
        if self.values.get(name, default) is None:
            raise CheckpointError(f"{self.source}: {name} = None: this model has a soft cap")
        value = float(self.number(name, default=default))
        if value <= 0:
            raise CheckpointError(f"{self.source}: {name} = {value!r}: must be above 0")
        return value

    def only(self, name: str, expected: object, default: object = None) -> None:
        """Refuse any other value than the one that our model has."""
        value = self.values.get(name, expected if default is None else default)
        if value is not None and value != expected:
            raise CheckpointError(f"{self.source}: {name} = {value!r}: this model has {expected!r}")
