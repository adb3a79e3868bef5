"""The one door into the fits: a run table goes in, checked arrays come out, or an error names the culprit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from sweeps.laws.types import FitError, Flag

FlopFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Training FLOPs of N parameters on D tokens; arrays in, arrays out."""

_DISAGREE = 0.03
"""Relative spread of losses at one N and D that seeds do not explain: they move a loss by some .5 %."""
_ROWS_NAMED = 3
"""How many offending rows an error spells out."""


def six_nd(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """C = 6 N D, forward and backward, attention left out (Kaplan et al. 2020, section 2.1)."""
    return 6.0 * np.asarray(N, dtype=float) * np.asarray(D, dtype=float)


@dataclass(frozen=True, kw_only=True)
class Points:
    """The rows of a fit as read-only arrays of one length: finite, positive, in the order of the table."""

    N: np.ndarray
    """Parameters."""
    D: np.ndarray
    """Training tokens."""
    loss: np.ndarray
    """Nats per token."""
    C: np.ndarray
    """Training FLOPs: as realised where the table knows, else from the FLOP function."""
    budget: np.ndarray
    """Nominal FLOPs of the IsoFLOP group; C itself where the table has no groups."""
    weights: np.ndarray
    """How often a row counts. Whole numbers mean repeated rows, anything else means importance."""
    run_key: np.ndarray
    """Which run a row belongs to; rows of one run (checkpoints) are not independent."""
    flags: tuple[Flag, ...] = ()

    def __len__(self) -> int:
        return len(self.N)

    @property
    def budgets(self) -> np.ndarray:
        """The distinct nominal budgets, ascending."""
        return np.unique(self.budget)

    def take(self, rows: np.ndarray) -> "Points":
        """The rows that a mask or an index array names; the flags stay."""
        columns = {name: _frozen(getattr(self, name)[rows]) for name in _COLUMNS}
        return Points(**columns, flags=self.flags)


_COLUMNS = ("N", "D", "loss", "C", "budget", "weights", "run_key")


def prepare(
    run_table: pl.DataFrame | Mapping[str, Any],
    *,
    size: str = "N",
    weight: str | None = None,
    flops: FlopFunction | None = None,
    drop_invalid: bool = False,
) -> Points:
    """Checked arrays from the runs of one architecture at one context length.

    Rows whose `status` is given and not `finished` are left out, with a flag. `size` names the column that
    counts as N. C is `flops(N, D)` where given, else `train_flops` where complete, else 6 N D.

    Raises `FitError` for a missing or textual column, and for a NaN, an infinity, a zero or a negative number
    in N, D, loss, C, budget or weight; with `drop_invalid` such rows are left out and flagged instead.
    """
    table = run_table if isinstance(run_table, pl.DataFrame) else pl.DataFrame(dict(run_table))
    table, flags = _finished(table.with_row_index("_row"))
    columns = {"N": _numbers(table, size), "D": _numbers(table, "D"), "loss": _numbers(table, "loss")}
    columns["C"] = _compute(table, columns, flops, flags)
    columns["budget"] = _numbers(table, "budget") if _has(table, "budget") else columns["C"]
    columns["weights"] = np.ones(table.height) if weight is None else _numbers(table, weight)
    rows = table["_row"].to_numpy()
    good = _usable(columns, rows, drop_invalid, flags, {"N": size, "weights": weight or "weights"})
    run_key = _run_keys(table)[good]
    kept = {name: _frozen(column[good]) for name, column in columns.items()}
    points = Points(**kept, run_key=_frozen(run_key), flags=())
    if len(points) == 0:
        raise FitError("no usable run is left: the table has no finished row with finite N, D and loss")
    return replace(points, flags=(*flags, *_repeats(points), *_mixtures(table)))


def points_from_arrays(
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    *,
    C: np.ndarray | None = None,
    budget: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    run_key: np.ndarray | None = None,
) -> Points:
    """`prepare` for plain arrays; the same checks."""
    named = {"N": N, "D": D, "loss": loss, "train_flops": C, "budget": budget, "weights": weights}
    named["run_key"] = run_key
    given = {name: np.asarray(column) for name, column in named.items() if column is not None}
    lengths = {name: column.shape for name, column in given.items()}
    if len(set(lengths.values())) > 1 or any(column.ndim != 1 for column in given.values()):
        raise FitError(f"the columns must be vectors of one length, got {lengths}")
    return prepare(given, weight=None if weights is None else "weights")


def _frozen(array: np.ndarray) -> np.ndarray:
    """A read-only copy: nothing that a fit does can reach back into the caller's table."""
    copy = np.array(array)
    copy.setflags(write=False)
    return copy


def _finished(table: pl.DataFrame) -> tuple[pl.DataFrame, list[Flag]]:
    if "status" not in table.columns:
        return table, []
    unfinished = pl.col("status").is_not_null() & (pl.col("status").cast(pl.String) != "finished")
    n_left_out = table.filter(unfinished).height
    if not n_left_out:
        return table, []
    message = f"{n_left_out} of {table.height} rows are not finished and were left out"
    return table.filter(~unfinished), [Flag(code="unfinished-runs", severity="info", message=message)]


def _has(table: pl.DataFrame, column: str) -> bool:
    return column in table.columns and table[column].null_count() < table.height


def _numbers(table: pl.DataFrame, column: str) -> np.ndarray:
    if column not in table.columns:
        given = ", ".join(name for name in table.columns if name != "_row")
        raise FitError(f"column '{column}' is missing; the table has {given}")
    series = table[column]
    if series.dtype == pl.Null or not series.dtype.is_numeric():
        example = next((value for value in series if value is not None), None)
        raise FitError(f"column '{column}' holds {series.dtype}, not numbers (first value {example!r})")
    return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _compute(
    table: pl.DataFrame, columns: Mapping[str, np.ndarray], flops: FlopFunction | None, flags: list[Flag]
) -> np.ndarray:
    if flops is not None:
        return np.asarray(flops(columns["N"], columns["D"]), dtype=float)
    if _has(table, "train_flops"):
        realised = _numbers(table, "train_flops")
        if not np.isnan(realised).any():
            return realised
        message = "train_flops is empty in some rows; C = 6 N D stands in for it in all of them"
        flags.append(Flag(code="train-flops-incomplete", severity="warning", message=message))
    return six_nd(columns["N"], columns["D"])


def _usable(
    columns: Mapping[str, np.ndarray],
    rows: np.ndarray,
    drop_invalid: bool,
    flags: list[Flag],
    spelling: Mapping[str, str],
) -> np.ndarray:
    good = np.ones(len(rows), dtype=bool)
    complaints = []
    for name, column in columns.items():
        bad = ~(np.isfinite(column) & (column > 0))
        good &= ~bad
        label = spelling.get(name, name)
        complaints += [f"{label} = {column[i]:g} in row {rows[i]}" for i in np.flatnonzero(bad)]
    if not complaints:
        return good
    named = "; ".join(complaints[:_ROWS_NAMED]) + ("; ..." if len(complaints) > _ROWS_NAMED else "")
    if not drop_invalid:
        raise FitError(f"finite numbers above 0 are needed, but {named}; mend or drop {(~good).sum()} row(s)")
    message = f"{(~good).sum()} row(s) were left out because {named}"
    flags.append(Flag(code="invalid-rows", severity="warning", message=message))
    return good


def _run_keys(table: pl.DataFrame) -> np.ndarray:
    if "run_key" in table.columns and table["run_key"].null_count() == 0:
        return table["run_key"].cast(pl.String).to_numpy().astype(str)
    return np.array([f"row {i}" for i in table["_row"]], dtype=str)


def _repeats(points: Points) -> list[Flag]:
    flags = []
    n_runs = len(np.unique(points.run_key))
    if n_runs < len(points):
        message = f"{len(points)} rows come from {n_runs} runs and depend on each other; cluster by run"
        flags.append(Flag(code="dependent-rows", severity="warning", message=message))
    n_distinct = len(np.unique(np.column_stack([points.N, points.D, points.loss]), axis=0))
    if n_distinct < len(points):
        message = f"{len(points) - n_distinct} row(s) repeat N, D and loss of another: copies of one run?"
        flags.append(Flag(code="duplicate-rows", severity="warning", message=message))
    spread = _largest_spread(points)
    if spread > _DISAGREE and n_runs == len(points):
        message = (
            f"losses at one N and D differ by up to {spread:.0%}, more than seeds do: the rows seem to mix"
            " data sets or experiments; fit one of them"
        )
        flags.append(Flag(code="contradictory-rows", severity="warning", message=message))
    return flags


def _largest_spread(points: Points) -> float:
    """Of the losses of rows with the same N and D, highest over lowest minus 1."""
    if len(points) == 0:
        return 0.0
    places = np.unique(np.column_stack([points.N, points.D]), axis=0, return_inverse=True)[1].ravel()
    lowest, highest = np.full(places.max() + 1, np.inf), np.zeros(places.max() + 1)
    np.minimum.at(lowest, places, points.loss)
    np.maximum.at(highest, places, points.loss)
    return float(np.max(highest / lowest) - 1.0)


def _mixtures(table: pl.DataFrame) -> list[Flag]:
    flags = []
    for column in ("arch", "context_length"):
        if column in table.columns and table[column].n_unique() > 1:
            n_values = table[column].n_unique()
            message = f"the rows mix {n_values} values of {column}; one law cannot hold for all"
            flags.append(Flag(code="mixed-groups", severity="warning", message=message))
    return flags
