"""Runs from other people's tables: CSV or Parquet, columns and units named by the caller, units checked.

A table that counts N in millions fits without complaint and predicts nonsense. So numbers that cannot be
parameters, tokens or nats are refused with the option that would mend them, and nothing is converted
silently.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from sweeps.laws.types import FitError
from sweeps.run_table import RUN_TABLE_SCHEMA, complete

NEEDED = ("N", "D", "loss")
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
"""Factors by name: `N=M` says that column N counts millions."""
COUNTED = ("N", "N_non_embedding", "D", "budget", "train_flops")
"""Columns that a unit may scale."""

_SMALLEST = {"N": 1e3, "D": 1e4, "budget": 1e9, "train_flops": 1e9}
"""Below these, nobody trains a language model: the column is in another unit."""
_HIGHEST_LOSS = 20.0
"""Nats per token: exp(20) is a thousand times any vocabulary; a perplexity, or bits of a document."""


def read_runs(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    *,
    where: Mapping[str, str] | None = None,
    arch: str | None = None,
    context_length: int | None = None,
) -> pl.DataFrame:
    """A run table with every column of the schema from a `.csv` or `.parquet` file.

    `columns` maps names of the run table to those of the file ({"N": "params"}), `units` names the unit that
    a column is counted in ({"N": "M"}), `where` keeps the rows whose columns, by the file's names, read as
    the texts given ({"experiment": "mine"}). `arch` and `context_length` stand in for columns that the file
    lacks; without either they are "unknown" and 0, one group. Rows are finished unless the file has a status.

    Raises `FitError` naming the file, the column, and the option that would mend it.
    """
    path = Path(source)
    table = _selected(_read(path), where or {}, path)
    table = _renamed(table, columns or {}, path)
    table = _scaled(table, units or {}, path)
    _check_needed(table, path)
    _check_magnitudes(table, path)
    defaults = {"arch": arch or "unknown", "context_length": context_length or 0, "status": "finished"}
    given = {"arch": arch, "context_length": context_length}
    replaced = [
        pl.lit(value).alias(name)
        for name, value in defaults.items()
        if name not in table.columns or given.get(name) is not None
    ]
    table = table.with_columns(replaced)
    kept = table.select(name for name in table.columns if name in RUN_TABLE_SCHEMA)
    try:
        return complete(kept)
    except pl.exceptions.PolarsError as error:
        raise FitError(f"{path}: {str(error).splitlines()[0]}") from None


def parse_mapping(options: list[str] | None, option: str) -> dict[str, str]:
    """`["N=params", "D=tokens"]` as a dictionary. Raises `FitError` naming the option that is not
    NAME=VALUE."""
    pairs = {}
    for text in options or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise FitError(f"--{option} {text}: say NAME=VALUE, as --{option} N=params")
        pairs[name.strip()] = value.strip()
    return pairs


def _read(path: Path) -> pl.DataFrame:
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".csv": lambda file: pl.read_csv(file, infer_schema_length=None),
        ".parquet": pl.read_parquet,
    }
    if path.suffix not in readers:
        raise FitError(f"{path}: runs are read from .csv or .parquet")
    try:
        table = readers[path.suffix](path)
    except FileNotFoundError:
        raise FitError(f"{path}: no such file") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FitError(f"{path}: cannot be read: {str(error).strip().splitlines()[0]}") from None
    if table.height == 0:
        raise FitError(f"{path}: holds no rows")
    return table


def _selected(table: pl.DataFrame, where: Mapping[str, str], path: Path) -> pl.DataFrame:
    for name, value in where.items():
        if name not in table.columns:
            raise FitError(
                f"{path}: --where {name}={value}: no such column; it has {', '.join(table.columns)}"
            )
        kept = table.filter(pl.col(name).cast(pl.String) == value)
        if kept.height == 0:
            known = table[name].cast(pl.String).drop_nulls().unique().sort().head(8).to_list()
            raise FitError(f"{path}: --where {name}={value}: no row; {name} has {', '.join(known)}")
        table = kept
    return table


def _renamed(table: pl.DataFrame, columns: Mapping[str, str], path: Path) -> pl.DataFrame:
    for name, theirs in columns.items():
        if name not in RUN_TABLE_SCHEMA:
            raise FitError(
                f"--column {name}={theirs}: the run table has no column {name}; see {', '.join(NEEDED)}"
            )
        if theirs not in table.columns:
            raise FitError(f"{path}: no column {theirs}; it has {', '.join(table.columns)}")
    taken = [theirs for theirs in columns.values() if theirs in table.columns]
    shadowed = [name for name in columns if name in table.columns and name not in taken]
    return table.drop(shadowed).with_columns(pl.col(theirs).alias(name) for name, theirs in columns.items())


def _scaled(table: pl.DataFrame, units: Mapping[str, str], path: Path) -> pl.DataFrame:
    for name, unit in units.items():
        if name not in COUNTED:
            raise FitError(f"--unit {name}={unit}: units are for {', '.join(COUNTED)}")
        if unit not in UNITS:
            raise FitError(
                f"--unit {name}={unit}: no such unit; there are {', '.join(u for u in UNITS if u)}"
            )
        if name not in table.columns:
            raise FitError(f"{path}: --unit {name}={unit} has no column {name} to scale")
    try:
        return table.with_columns(pl.col(name).cast(pl.Float64) * UNITS[unit] for name, unit in units.items())
    except pl.exceptions.PolarsError as error:
        raise FitError(f"{path}: {str(error).splitlines()[0]}") from None


def _check_needed(table: pl.DataFrame, path: Path) -> None:
    for name in NEEDED:
        if name not in table.columns:
            raise FitError(
                f"{path}: column {name} is missing; it has {', '.join(table.columns)}."
                f" Say which one it is, as --column {name}={table.columns[0]}"
            )


def _check_magnitudes(table: pl.DataFrame, path: Path) -> None:
    for name, smallest in _SMALLEST.items():
        typical = _median(table, name)
        if typical is not None and 0 < typical < smallest:
            raise FitError(
                f"{path}: column {name} is {typical:.4g} in the middle, too small to be a count;"
                f" say its unit, as --unit {name}=M"
            )
    loss = _median(table, "loss")
    if loss is not None and loss > _HIGHEST_LOSS:
        raise FitError(f"{path}: loss is {loss:.4g} in the middle; nats per token are needed, not perplexity")


def _median(table: pl.DataFrame, name: str) -> float | None:
    if name not in table.columns or not table[name].dtype.is_numeric():
        return None
    value = table[name].cast(pl.Float64).drop_nans().median()
    return float(value) if isinstance(value, float) else None
