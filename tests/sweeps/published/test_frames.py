"""Tables out of pickles against pandas itself."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.published.frames import columns_of, is_frame, known, plain
from sweeps.published.pickles import PickleRefused, parse_pickle

DTYPES = ["f8", "f4", "i8", "i4", "i2", "u1", "?", ">f8"]


def through_a_pickle(value: Any, protocol: int = 4) -> Any:
    return parse_pickle(pickle.dumps(value, protocol=protocol), known)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5),
    rows=st.integers(1, 6),
    seed=st.integers(0, 100),
    protocol=st.sampled_from([2, 3, 4, 5]),
)
def test_numbers_of_every_kind(dtypes: list[str], rows: int, seed: int, protocol: int) -> None:
    random = np.random.default_rng(seed)
    columns = {f"c{i}": (100 * random.random(rows)).astype(dtype) for i, dtype in enumerate(dtypes)}
    table = pd.DataFrame(columns)
    table.columns = pd.Index(list(columns), dtype=object)
    found = columns_of(_frame(table, protocol))
    assert list(found) == list(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(np.asarray(found[name]), values)


def test_objects_and_missing_values() -> None:
    table = pd.DataFrame({"a": ["x", 1, None], "b": [1.5, "NaN", float("inf")]}, dtype=object)
    table.columns = pd.Index(["a", "b"], dtype=object)
    found = columns_of(_frame(table))
    assert found["a"] == ["x", 1, None]
    assert found["b"] == [1.5, "NaN", float("inf")]


def test_the_lower_level_of_a_column_index_names_the_columns() -> None:
    table = pd.DataFrame(np.arange(6.0).reshape(2, 3))
    levels = [pd.Index(["in", "out"], dtype=object), pd.Index(["x", "y", "z"], dtype=object)]
    table.columns = pd.MultiIndex(levels=levels, codes=[[0, 0, 1], [2, 0, 1]])
    found = columns_of(_frame(table))
    assert {name: list(values) for name, values in found.items()} == {"z": [0, 3], "x": [1, 4], "y": [2, 5]}


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"when": pd.to_datetime(["2025-01-01"])}),
        pd.DataFrame({"kind": pd.Categorical(["a"])}),
        pd.DataFrame({"a": [1]}, index=pd.to_datetime(["2025-01-01"])),
    ],
    ids=["times", "categories", "an index of times"],
)
def test_tables_that_are_more_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(PickleRefused):
        columns_of(_frame(table))


def test_a_numpy_number_is_a_number() -> None:
    assert plain(through_a_pickle(np.float64(2.5))) == 2.5
    assert plain(through_a_pickle(np.int32(-3), protocol=2)) == -3
    assert plain("text") == "text"
    with pytest.raises(TypeError, match="a list where a text or a number was due"):
        plain([1])


def _frame(table: pd.DataFrame, protocol: int = 4) -> Any:
    found = through_a_pickle(table, protocol)
    assert is_frame(found)
    return found
