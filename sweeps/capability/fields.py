"""Frozen dataclasses from mappings, strictly: an unknown, missing or impossible key is named with its
value."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class CapabilityError(ValueError):
    """A suite that cannot be run or reported; one line that names the key, the value and the cure."""


def build(made: type[T], given: Any, where: str) -> T:
    """`made` from a mapping of its fields; `where` is its place, for errors. Lists become tuples."""
    if not isinstance(given, Mapping):
        raise CapabilityError(f"{where} = {given!r}: must be a mapping")
    known = {f.name: f for f in fields(made)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise CapabilityError(f"{where}.{key}: unknown key; {hint}")
    for name, f in known.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise CapabilityError(f"{where}.{name}: required and missing")
    hints = get_type_hints(made)
    values = {name: _checked(value, hints[name], f"{where}.{name}") for name, value in given.items()}
    try:
        return made(**values)
    except ValueError as error:
        raise CapabilityError(f"{where}: {error}") from error


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and type(None) in inside:
            return None
        return _checked(value, next(kind for kind in inside if kind is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise CapabilityError(f"{where} = {value!r}: must be a list")
        return tuple(_checked(entry, inside[0], f"{where}[{i}]") for i, entry in enumerate(value))
    wanted = (int, float) if hint is float else hint if isinstance(hint, type) else None
    if wanted is not None and (
        not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool)
    ):
        raise CapabilityError(f"{where} = {value!r}: must be of type {hint.__name__}")
    return value
