"""Arrays and tables out of a pickle that was read as data; neither pandas' nor numpy's unpickling runs.

What is understood is what pandas 1.3 and later writes for a DataFrame of plain columns: blocks of numbers, or
of Python objects, with a simple, a range or a two-level column index.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.published.pickles import Call, Name, PickleRefused

_RECONSTRUCT = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"})
_FROM_BUFFER = frozenset({"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"})
_SCALAR = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})
_FRAME = "pandas.core.frame.DataFrame"
_MANAGER = "pandas.core.internals.managers.BlockManager"
_BLOCK = "pandas._libs.internals._unpickle_block"
_NEW_INDEX = "pandas.core.indexes.base._new_Index"
_INDEX = "pandas.core.indexes.base.Index"
_RANGE = "pandas.core.indexes.range.RangeIndex"
_MULTI = "pandas.core.indexes.multi.MultiIndex"
_SLICE = "builtins.slice"
NAMES = _RECONSTRUCT | _FROM_BUFFER | _SCALAR | {
    _FRAME, _MANAGER, _BLOCK, _NEW_INDEX, _INDEX, _RANGE, _MULTI, _SLICE,
    "numpy.ndarray", "numpy.dtype",
}  # fmt: skip
"""All that a table of plain columns names."""

_NUMBERS = re.compile(r"^[fiu][1248]$|^b1$")
Values = np.ndarray | list[Any]
"""A column: numbers, or Python's own objects."""


def is_frame(value: Any) -> bool:
    return isinstance(value, Call) and str(value.name) == _FRAME


def columns_of(frame: Call) -> dict[str, Values]:
    """The columns of a DataFrame, in order; of a two-level index the lower level names them.

    PickleRefused where the table holds something other than plain columns.
    """
    try:
        blocks, (labels, _) = _called(frame.state["_mgr"], _MANAGER).args[:2]
        names = _labels(labels)
        columns: dict[str, Values] = {name: [] for name in names}
        for block in blocks:
            values, placement, _ = _called(block, _BLOCK).args
            rows = _array(values)
            for row, place in enumerate(_places(placement)):
                columns[names[place]] = rows[row]
    except (KeyError, ValueError, IndexError, TypeError, AttributeError):
        raise PickleRefused("holds a table that is not one of plain columns") from None
    if len(columns) != len(names):
        raise PickleRefused("holds a table with two columns of one name")
    return columns


def plain(value: Any) -> Any:
    """A numpy scalar as Python's number; anything else as it is."""
    if isinstance(value, Call) and str(value.name) in _SCALAR:
        dtype, raw = value.args
        return np.frombuffer(raw, _dtype(dtype))[0].item()
    return value


def _called(value: Any, name: str) -> Call:
    if not isinstance(value, Call) or str(value.name) != name:
        raise TypeError
    return value


def _labels(index: Any) -> list[str]:
    kind, fields = _called(index, _NEW_INDEX).args
    if str(kind) == _MULTI:
        lowest = _labels(fields["levels"][-1])
        return [lowest[code] for code in _array(fields["codes"][-1])[:]]
    if str(kind) != _INDEX:
        raise TypeError
    return [str(label) for label in _array(fields["data"])]


def _places(placement: Any) -> Sequence[int]:
    if isinstance(placement, Call) and str(placement.name) == _SLICE:
        return range(*placement.args)
    return [int(place) for place in _array(placement)]


def _array(value: Any) -> Any:
    """An array of numbers; one of objects as nested lists, rows outermost."""
    if isinstance(value, Call) and str(value.name) in _FROM_BUFFER:
        raw, dtype, shape, order = value.args
        fortran = order == "F"
    else:
        if str(value.name) not in _RECONSTRUCT:
            raise TypeError
        _, shape, dtype, fortran, raw = value.state
    if isinstance(raw, list):
        return _rows_of_objects([plain(item) for item in raw], shape)
    return np.frombuffer(raw, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")


def _rows_of_objects(items: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """numpy lists objects in the order of C whatever the order of the array."""
    if len(items) != int(np.prod(shape)):
        raise ValueError
    if len(shape) == 1:
        return items
    rows, width = shape
    return [items[row * width : (row + 1) * width] for row in range(rows)]


def _dtype(value: Any) -> np.dtype[Any]:
    """A dtype of plain numbers; the byte order stands in its state."""
    code = _called(value, "numpy.dtype").args[0]
    order = value.state[1] if value.state else "|"
    if not _NUMBERS.match(code) or order not in ("<", ">", "|", "="):
        raise TypeError
    return np.dtype(("" if order == "|" else order) + code)


def known(name: Name) -> bool:
    """Whether a table of plain columns may name this."""
    return str(name) in NAMES
