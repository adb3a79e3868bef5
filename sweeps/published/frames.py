"""Arrays and tables out of a pickle that was read as data; neither pandas' nor numpy's unpickling runs.

What is understood is what pandas 1.3 and later writes for a DataFrame of plain columns: blocks of numbers, or
of Python objects, with a simple, a range or a two-level column index.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.published.pickles import Call, Name, PickleRefused

NAMES = {
    "numpy": {"_reconstruct", "_frombuffer", "scalar", "ndarray", "dtype"},
    "pandas": {
        "DataFrame",
        "BlockManager",
        "_unpickle_block",
        "_new_Index",
        "Index",
        "RangeIndex",
        "MultiIndex",
    },
    "builtins": {"slice"},
    "__builtin__": {"slice"},
    "_codecs": {"encode"},
}
"""All that a table of plain columns names, by package: modules move between versions, names stay."""

_NUMBERS = re.compile(r"^[fiu][1248]$|^b1$")
Values = np.ndarray | list[Any]
"""A column: numbers, or Python's own objects."""


def is_frame(value: Any) -> bool:
    return _is(value, "DataFrame")


def columns_of(frame: Call) -> dict[str, Values]:
    """The columns of a DataFrame, in order; of a two-level index the lower level names them.

    PickleRefused where the table holds something other than plain columns.
    """
    try:
        blocks, (labels, _) = _called(frame.state["_mgr"], "BlockManager").args[:2]
        names = _labels(labels)
        columns: dict[str, Values] = {name: [] for name in names}
        for block in blocks:
            values, placement, _ = _called(block, "_unpickle_block").args
            rows = _array(values)
            for row, place in enumerate(_places(placement)):
                columns[names[place]] = rows[row]
    except (KeyError, ValueError, IndexError, TypeError, AttributeError, RecursionError):
        raise PickleRefused("holds a table that is not one of plain columns") from None
    if len(columns) != len(names):
        raise PickleRefused("holds a table with two columns of one name")
    return columns


def plain(value: Any) -> Any:
    """A text or a number as Python's own, whether Python or numpy wrote it; TypeError for anything else."""
    if _is(value, "scalar"):
        dtype, raw = value.args
        return np.frombuffer(_bytes(raw), _dtype(dtype))[0].item()
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"a {type(value).__name__} where a text or a number was due")
    return value


def known(name: Name) -> bool:
    """Whether a table of plain columns may name this."""
    return name.name in NAMES.get(name.module.split(".")[0], ())


def _is(value: Any, name: str) -> bool:
    """Whether a value is what a known function of that name would have made."""
    return isinstance(value, Call) and value.name.name == name and known(value.name)


def _called(value: Any, name: str) -> Call:
    if not _is(value, name):
        raise TypeError
    made: Call = value
    return made


def _labels(index: Any) -> list[str]:
    kind, fields = _called(index, "_new_Index").args
    if kind.name == "MultiIndex":
        lowest = _labels(fields["levels"][-1])
        return [lowest[code] for code in _array(fields["codes"][-1])[:]]
    if kind.name != "Index":
        raise TypeError
    labels = list(_array(fields["data"]))
    if not all(isinstance(label, str | int | np.integer) for label in labels):
        raise TypeError
    return [str(label) for label in labels]


def _places(placement: Any) -> Sequence[int]:
    if _is(placement, "slice"):
        return range(*placement.args)
    return [int(place) for place in _array(placement)]


def _array(value: Any) -> Any:
    """An array of numbers; one of objects as nested lists, rows outermost."""
    if _is(value, "_frombuffer"):
        raw, dtype, shape, order = value.args
        fortran = order == "F"
    else:
        _, shape, dtype, fortran, raw = _called(value, "_reconstruct").state
    if isinstance(raw, list):
        return _rows_of_objects([plain(item) for item in raw], shape)
    return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order="F" if fortran else "C")


def _rows_of_objects(items: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """numpy lists objects in the order of C whatever the order of the array."""
    if len(items) != int(np.prod(shape)):
        raise ValueError
    if len(shape) == 1:
        return items
    rows, width = shape
    return [items[row * width : (row + 1) * width] for row in range(rows)]


def _bytes(raw: Any) -> bytes:
    """Bytes; protocol 2 writes them as text to be encoded."""
    if _is(raw, "encode"):
        text, encoding = raw.args
        if encoding != "latin1":
            raise TypeError
        return str(text).encode("latin1")
    if not isinstance(raw, bytes | bytearray):
        raise TypeError
    return bytes(raw)


def _dtype(value: Any) -> np.dtype[Any]:
    """A dtype of plain numbers; the byte order stands in its state."""
    code = _called(value, "dtype").args[0]
    order = value.state[1] if value.state else "|"
    if not _NUMBERS.match(code) or order not in ("<", ">", "|", "="):
        raise TypeError
    return np.dtype(("" if order == "|" else order) + code)
