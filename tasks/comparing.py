"""`isoflop compare`: two sweeps' runs, before and after a change, in one page and a few lines of text."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from reports.comparing import Sides, headline, render, sentence
from sweeps.comparing import SweepComparison, compare_sweeps
from sweeps.laws import LawSettings
from sweeps.laws.readers import read_runs
from tasks.errors import UserError
from tasks.state import State
from xlstm.training.files import write_atomically

COMPARABLE = (
    ("hash", "Content hash"),
    ("tokenizer", "Tokenizer"),
    ("name", "Corpus"),
    ("val_tokens", "Validation tokens"),
)
"""Facts of a corpus that two sweeps must share for their losses to be comparable; a name only where nobody
knows the content."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison left behind."""

    text: str
    report: Path


@dataclass(frozen=True, kw_only=True)
class _Source:
    name: str
    runs: pl.DataFrame
    corpus: dict[str, Any]
    path: Path


def compare(
    first: str,
    second: str,
    settings: LawSettings,
    state: State,
    *,
    out: Path | None = None,
    command: str = "",
) -> Compared:
    """Compare two sweeps, each the name of one in the state folder, a sweep's folder, or a run table.

    UserError where a sweep is not there or has no run; FitError where they share nothing to compare.
    """
    sources = [_source(text, state) for text in (first, second)]
    names = _distinct_names([source.name for source in sources])
    comparison = compare_sweeps(sources[0].runs, sources[1].runs, settings, names=names)
    sides = _sides(sources, command)
    path = (out or Path(f"{names[0]}-against-{names[1]}")) / "comparison.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made: {error.strerror}") from error
    write_atomically(path, render(comparison, sides))
    return Compared(text=_text(comparison, sides), report=path)


def _source(text: str, state: State) -> _Source:
    given = Path(text) if Path(text).exists() else state.sweep_dir(text)
    table = given if given.is_file() else given / "runs.parquet"
    if not table.exists():
        known = sorted(path.parent.name for path in (state.home / "sweeps").glob("*/runs.parquet"))
        raise UserError(
            f"{text}: is neither a sweep with gathered runs ({', '.join(known) or 'there is none'}),"
            " nor a folder with runs.parquet, nor a run table"
        )
    corpus = table.parent / "corpus.json"
    facts = json.loads(corpus.read_text(encoding="utf-8")) if corpus.exists() else {}
    runs = read_runs(str(table), {}, {})
    name = table.parent.name if table.name == "runs.parquet" else table.stem
    return _Source(name=name, runs=runs, corpus=facts, path=table)


def _distinct_names(names: list[str]) -> tuple[str, str]:
    first, second = names
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _sides(sources: list[_Source], command: str) -> Sides:
    one, two = sources
    known = one.corpus.keys() & two.corpus.keys()
    different = [
        title.lower()
        for key, title in COMPARABLE
        if key in known - ({"name"} if "hash" in known else set()) and one.corpus[key] != two.corpus[key]
    ]
    unknown = not one.corpus or not two.corpus
    caution = ""
    if different:
        caution = (
            f"The sweeps differ in {', '.join(different)}: their losses are of different texts or tokens, so"
            " that only exponents and optima compare, not the losses."
        )
    elif unknown:
        caution = (
            "What text the losses were measured on is not recorded for both: make sure that it is the same."
        )
    bytes_are_tokens = all(source.corpus.get("tokenizer") == "bytes" for source in sources)
    facts = [
        (title, str(one.corpus.get(key, "")), str(two.corpus.get(key, "")))
        for key, title in COMPARABLE
        if key in one.corpus or key in two.corpus
    ]
    finished = [source.runs.filter(pl.col("status") == "finished").height for source in sources]
    return Sides(
        made=f"{datetime.now(UTC):%-d %b %Y, %H:%M} UTC",
        facts=(("Finished runs", str(finished[0]), str(finished[1])), *facts),
        caution=caution,
        same_data=not different,
        unit="nats per byte" if bytes_are_tokens else "nats per token",
        regenerate=command,
    )


def _text(comparison: SweepComparison, sides: Sides) -> str:
    lines = [sides.caution] if sides.caution else []
    lines.append(headline(comparison, sides))
    lines += [sentence(comparison, group, sides) for group in comparison.groups]
    return "\n".join(lines)
