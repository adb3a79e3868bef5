"""Fields that a frozen config gained after runs were trained with it: at their defaults no key knows them."""

from dataclasses import Field, field
from typing import Any, TypeVar

T = TypeVar("T")
_LATER = "later"


def later(default: T) -> T:
    """A dataclass field whose default is what every run did before the field was there."""
    return field(default=default, metadata={_LATER: True})  # type: ignore[no-any-return, call-overload]


def is_left_out(config: object, of: Field[Any]) -> bool:
    """Whether canonical JSON goes without a field: it came later, and is at its default."""
    return _LATER in of.metadata and bool(getattr(config, of.name) == of.default)
