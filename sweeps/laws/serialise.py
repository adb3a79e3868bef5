"""Results as JSON and back: floats as `repr` prints them (every digit), nan as null, arrays as lists.

Fields that hold a number read null as nan, so a round trip is exact. In the free-form tables of a diagnostics
dictionary null stays None. JSON has no infinity: it is written as the strings "inf" and "-inf".
"""

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from sweeps.laws.types import Analysis, LawFit

FORMAT_VERSION = 1
"""Raised when a reader of the older form would misread the newer one."""

_DRAWS = ("draws", "cluster_draws")
_KINDS: dict[str, type] = {"analysis": Analysis, "law-fit": LawFit}


def to_json(result: Analysis | LawFit, *, draws: bool = False, indent: int | None = None) -> str:
    """The result as JSON text that `from_json` reads back.

    Bootstrap draws, a hundred times the rest, are written with `draws` alone; the seed in the settings
    remakes them.
    """
    kind = next((name for name, cls in _KINDS.items() if type(result) is cls), None)
    if kind is None:
        raise TypeError(f"{type(result).__name__} is not a result of a fit: {', '.join(_KINDS)} are")
    document = {"isoflop": kind, "version": FORMAT_VERSION, "result": _encode(result, draws)}
    return json.dumps(document, indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """The `Analysis` or `LawFit` that `to_json` wrote. ValueError says what is wrong with another text."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("isoflop") not in _KINDS:
        raise ValueError(f"not a result of a fit: the field 'isoflop' must be one of {', '.join(_KINDS)}")
    if document.get("version") != FORMAT_VERSION:
        raise ValueError(f"written in version {document.get('version')}, this program reads {FORMAT_VERSION}")
    return _decode(document["result"], _KINDS[document["isoflop"]], document["isoflop"])


def _encode(value: Any, draws: bool) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        kept = (field.name for field in fields(value) if draws or field.name not in _DRAWS)
        return {name: _encode(getattr(value, name), draws) for name in kept}
    if isinstance(value, np.ndarray):
        return _encode(value.tolist(), draws)
    if isinstance(value, np.generic):
        return _encode(value.item(), draws)
    if isinstance(value, float):
        return value if math.isfinite(value) else (None if math.isnan(value) else str(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _encode(item, draws) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_encode(item, draws) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in a result: numbers, text, lists and tables do")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _decode(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`; `where` is the path that an error names."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _decode_record(value, hint, where)
    if hint is float:
        return _number(value, where)
    if hint is np.ndarray:
        return np.array([_decode(item, Any, where) for item in value], dtype=float)
    if origin in (Union, types.UnionType):
        return _decode_union(value, arguments, where)
    if origin is tuple:
        return tuple(_decode(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        return {key: _decode(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if hint in (int, str, bool) and type(value) is not hint:
        raise ValueError(f"{where}: {value!r} is not {hint.__name__}")
    if origin is Literal and value not in arguments:
        raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
    return value


def _decode_record(value: Any, cls: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {value!r} is not a {cls.__name__}")
    hints = _hints(cls)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{where}: a {cls.__name__} has no field {sorted(unknown)[0]!r}")
    try:
        return cls(**{name: _decode(item, hints[name], f"{where}.{name}") for name, item in value.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _decode_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    if float in options and (value is None or isinstance(value, float)):
        return _number(value, where)
    if np.ndarray in options and isinstance(value, list):
        return _decode(value, np.ndarray, where)
    records = [option for option in options if isinstance(option, type) and is_dataclass(option)]
    return _decode(value, records[0], where) if records and isinstance(value, dict) else value


def _number(value: Any, where: str) -> float:
    if value is None:
        return float("nan")
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {value!r} is not a number")
    return float(value)
