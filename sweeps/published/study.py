"""The door for published runs: a folder or a file goes in, tables come out, and what was left out is said."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from sweeps.published import inference, tidy, wandb_runs
from sweeps.published.merge import MergedRun, merge
from sweeps.published.pickles import PickleRefused, read_pickle
from sweeps.published.rows import published_row, sort_key
from sweeps.published.schema import CURVES_SCHEMA, INFERENCE_SCHEMA, PUBLISHED_SCHEMA, to_schema
from sweeps.published.tidy import CurveKey
from sweeps.published.wandb_runs import Curve, PublishedRun

_SUFFIXES = (".pkl", ".csv", ".parquet")
_IN_NAMES = {"context_length": "ctx", "batch_size": "gbs"}


class PublishedError(ValueError):
    """Published data that cannot be used; one line that names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something about a file or a run that a reader must know."""

    kind: Literal["skipped", "refused", "duplicates", "disagreement", "bounded"]
    text: str


@dataclass(frozen=True, kw_only=True)
class PublishedStudy:
    """Published runs, their curves and the measurements of inference; notes say what was left out and why."""

    runs: pl.DataFrame
    """PUBLISHED_SCHEMA, sorted by set, size and length."""
    curves: pl.DataFrame
    """CURVES_SCHEMA."""
    inference: pl.DataFrame
    """INFERENCE_SCHEMA."""
    notes: tuple[Note, ...]

    @property
    def paper_runs(self) -> pl.DataFrame:
        """The runs of the paper's de-duplicated data set."""
        return self.runs.filter(pl.col("excluded").is_null())


@dataclass(kw_only=True)
class _Sources:
    """What the files held."""

    runs: list[PublishedRun] = field(default_factory=list)
    curves: dict[CurveKey, Curve] = field(default_factory=dict)
    inference: list[pl.DataFrame] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def read_published(
    path: str | Path, progress: Callable[[str], None] = lambda message: None
) -> PublishedStudy:
    """Everything that a folder (with its folders) or one file holds of published runs.

    Pickles of the authors, and tidy CSV and Parquet tables of runs, curves and measurements. Files of other
    kinds are named in `notes`, with the reason. `progress` hears the name of every file.

    Raises PublishedError where nothing is there to read; PickleRefused where the one file asked for is not
    plain data.
    """
    root = Path(path)
    files = _files(root)
    sources = _Sources()
    for file in files:
        progress(f"reading {file.name}")
        _read(file, root, sources, alone=len(files) == 1)
    if not sources.runs and not sources.inference:
        reasons = "; ".join(note.text for note in sources.notes[:3])
        raise PublishedError(f"{root}: holds no published runs: {reasons}")
    merged = merge(sources.runs)
    rows, merged = _rows(merged, sources.notes)
    order = sorted(range(len(rows)), key=lambda i: sort_key(rows[i]))
    curves = _curves([(rows[i], merged[i]) for i in order], sources.curves)
    return PublishedStudy(
        runs=to_schema([rows[i] for i in order], PUBLISHED_SCHEMA),
        curves=curves,
        inference=_inference(sources.inference),
        notes=(*sources.notes, *_notes(merged, rows)),
    )


def _files(root: Path) -> list[Path]:
    """Best sources first: pickles, then tables of one set, then tables of several."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise PublishedError(f"{root}: no such file or folder")
    found = [file for file in root.rglob("*") if file.is_file() and not file.name.startswith(".")]
    if not found:
        raise PublishedError(f"{root}: is empty")
    return sorted(found, key=lambda file: (_rank(file), str(file.relative_to(root))))


def _rank(file: Path) -> int:
    if file.suffix == ".pkl":
        return 0
    return 2 if file.name.startswith("all_") else 1


def _read(file: Path, root: Path, sources: _Sources, *, alone: bool) -> None:
    name = file.name if root == file else str(file.relative_to(root))
    if file.suffix not in _SUFFIXES:
        sources.notes.append(Note(kind="skipped", text=f"{name}: no {', '.join(_SUFFIXES)} file"))
        return
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        origin = {"source_file": file.name, "source_sha256": digest}
        reader = _read_pickle if file.suffix == ".pkl" else _read_table
        if not reader(file, origin, sources):
            text = f"{name}: holds neither published runs, nor curves, nor measurements of inference"
            sources.notes.append(Note(kind="skipped", text=text))
    except PickleRefused as error:
        if alone:
            raise
        sources.notes.append(Note(kind="refused", text=str(error).replace(str(file), name)))
    except (OSError, ValueError, TypeError, ArithmeticError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())
        if alone:
            raise PublishedError(f"{file}: {reason}") from error
        sources.notes.append(Note(kind="skipped", text=f"{name}: {reason}"))


def _read_pickle(file: Path, origin: dict[str, str], sources: _Sources) -> bool:
    data = read_pickle(file, wandb_runs.known)
    try:
        tables = inference.tables_in(data)
        runs = wandb_runs.read_runs(data, file.stem.removesuffix("_wandb_data"))
    except PickleRefused as error:
        raise PickleRefused(f"{file}: {error}") from None
    sources.inference += [_with_origin(inference.measurements(table), origin) for table in tables]
    _add_runs(runs, origin, sources)
    return bool(tables or runs)


def _read_table(file: Path, origin: dict[str, str], sources: _Sources) -> bool:
    table = (
        pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file, infer_schema_length=None)
    )
    names = set(table.columns)
    if names >= tidy.RUN_COLUMNS:
        _add_runs(tidy.read_runs(table), origin, sources)
    elif names >= tidy.CURVE_COLUMNS:
        sources.curves |= tidy.read_curves(table)
    elif inference.is_measurement(table):
        measured = inference.measurements({name: table[name].to_list() for name in table.columns})
        sources.inference.append(_with_origin(measured, origin))
    else:
        return False
    return True


def _with_origin(table: pl.DataFrame, origin: dict[str, str]) -> pl.DataFrame:
    return table.with_columns(pl.lit(value).alias(name) for name, value in origin.items())


def _add_runs(runs: list[PublishedRun], origin: dict[str, str], sources: _Sources) -> None:
    """Fields that are null are left out; those that a run's name tells fill in where nothing was logged."""
    for run in runs:
        if not isinstance(run.fields.get("run_name"), str):
            raise ValueError("a run has no name")
        known = {name: value for name, value in run.fields.items() if value is not None}
        fields = {**_named(run.fields["run_name"]), **known, **origin}
        sources.runs.append(PublishedRun(fields=fields, curve=run.curve))


def _named(run_name: str) -> dict[str, int]:
    """What a run's name tells, as in `..._ctx8192_..._gbs128`."""
    found = {name: re.search(rf"_{key}(\d+)(?:_|$)", run_name) for name, key in _IN_NAMES.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


def _rows(merged: list[MergedRun], notes: list[Note]) -> tuple[list[dict[str, Any]], list[MergedRun]]:
    """The runs that have what makes one, as rows; of the others a note says what is wrong."""
    rows, kept = [], []
    for run in merged:
        try:
            rows.append(published_row(run))
            kept.append(run)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            text = f"{run.fields['source_file']}: run {run.fields.get('run_name')}: {reason}"
            notes.append(Note(kind="skipped", text=text))
    return rows, kept


def _curves(runs: list[tuple[dict[str, Any], MergedRun]], tables: Mapping[CurveKey, Curve]) -> pl.DataFrame:
    """Every curve once; that of a table stands before that of a pickle."""
    parts = []
    for row, run in runs:
        curve = tables.get((row.get("published_id"), row["run_name"]), run.curve)
        if curve is not None:
            parts.append(_curve(row, curve))
    table = pl.concat(parts) if parts else pl.DataFrame(schema=CURVES_SCHEMA)
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def _curve(row: Mapping[str, Any], curve: Curve) -> pl.DataFrame:
    tokens_a_step = (row["batch_size"] or 0) * row["context_length"]
    columns: dict[str, Any] = {"run_key": [row["run_key"]] * len(curve["step"]), **curve}
    columns["tokens"] = curve["step"] * tokens_a_step
    absent = np.full(len(curve["step"]), np.nan)
    return pl.DataFrame({name: columns.get(name, absent) for name in CURVES_SCHEMA}, schema=CURVES_SCHEMA)


def _inference(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Every measurement once: two files with one measurement give one row, that of the first."""
    if not tables:
        return pl.DataFrame(schema=INFERENCE_SCHEMA)
    names = list(INFERENCE_SCHEMA)
    table = pl.concat(tables).select(names)
    rounded = [pl.col(n).round_sig_figs(12).alias(f"_{n}") for n in ("ttft_s", "step_time_s")]
    keys = ["measurement_set", "model", "batch_size", "prefill_length", "_ttft_s", "_step_time_s"]
    distinct = table.with_columns(rounded).unique(keys, keep="first", maintain_order=True)
    order = ["measurement_set", "arch", "model", "batch_size", "prefill_length", "ttft_s"]
    return distinct.select(names).sort(order, maintain_order=True)


def _notes(merged: list[MergedRun], rows: list[dict[str, Any]]) -> Iterator[Note]:
    repeated = [row for row in rows if row["copies"] > 1]
    if repeated:
        copies = sum(row["copies"] - 1 for row in repeated)
        text = (
            f"{copies} rows repeat one of {len(repeated)} runs under another tag; source_tags keeps the tags"
        )
        yield Note(kind="duplicates", text=text)
    bounded = sum(row["loss_exact"] is False for row in rows)
    if bounded:
        text = f"{bounded} losses were recovered from figures and are known within loss_low and loss_high"
        yield Note(kind="bounded", text=text)
    for run in merged:
        for text in run.disagreements:
            yield Note(kind="disagreement", text=text)
