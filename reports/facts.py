"""Facts in words: what the answer holds for, how the numbers came about, what the runs read."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from reports import numbers
from reports.provenance import Provenance
from reports.view import View, finished


def conditions(view: View) -> str:
    """What the answer holds for, in a sentence: other data, tokens or recipes have other laws."""
    done = view.runs.filter(finished())
    if done.is_empty():
        return ""
    told = view.provenance.data
    parts = [
        f"data {told['name']}" if told.get("name") else "",
        f"tokenizer {told['tokenizer']}" if told.get("tokenizer") else "",
        f"budgets {_range(view.trained_budgets, numbers.flops)} FLOPs" if view.trained_budgets else "",
        f"sizes {_range(done['N'].to_list(), numbers.count)} parameters",
    ]
    return f"Holds for what was trained here: {', '.join(filter(None, parts))}, {done.height} runs."


def _range(values: Sequence[float], form: Any) -> str:
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def facts(view: View) -> list[tuple[str, str]]:
    """How the numbers came about, as names and values; what is not known is left out."""
    made = view.provenance
    seeds = sorted(set(view.runs["seed"].drop_nulls().to_list()))
    done = view.runs.filter(finished())
    trained = float(done["train_flops"].sum()) if made.train_flops is None else made.train_flops
    devices = sorted(set(view.runs["device"].drop_nulls().to_list()))
    known = {
        "Sweep": made.sweep,
        "Made": made.created_at,
        "Source of the runs": made.source,
        "Runs": f"{done.height} finished of {view.runs.height}",
        "Training compute": f"{numbers.flops(trained)} FLOPs in all finished runs{_spared(done, trained)}",
        "Training time": _device_hours(done),
        "Wall time": _wall_time(made.wall_time_s),
        "Device": made.device or ", ".join(devices),
        "Seeds": ", ".join(map(str, seeds)),
        "Git revision": made.git_revision or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
        "Make it again": made.regenerate or "",
    }
    return [(name, value) for name, value in known.items() if value]


def _spared(done: pl.DataFrame, trained: float) -> str:
    """What was really spent, where runs shared trunks."""
    spent = float(done["spent_flops"].fill_null(done["train_flops"]).sum())
    if spent > 0.999 * trained:
        return ""
    return f", of which {numbers.flops(spent)} were spent: runs branched off trunks that they share"


def _device_hours(done: pl.DataFrame) -> str:
    """Wall time summed over the runs: GPU hours where a run has one GPU."""
    hours = float(done["wall_time_s"].sum()) / 3600
    return f"{numbers.ratio(hours)} hours, summed over all finished runs" if hours else ""


def _wall_time(seconds: float | None) -> str:
    return f"{numbers.duration(seconds)} from the start to this report" if seconds is not None else ""


def data_facts(provenance: Provenance) -> list[tuple[str, str]]:
    """What the runs read; keys that are not known here are listed as they are."""
    forms = {"bytes": numbers.size, "train_tokens": numbers.count, "val_tokens": numbers.count}
    names = {
        "name": "Corpus",
        "hash": "Content hash",
        "train_tokens": "Training tokens",
        "val_tokens": "Validation tokens",
        "unigram_loss": f"Unigram loss ({provenance.loss_unit})",
        "bytes_per_token": "Bytes a token",
        "vocab_size": "Vocabulary",
    }
    return [
        (names.get(key, key.replace("_", " ").capitalize()), _datum(value, forms.get(key)))
        for key, value in provenance.data.items()
        if value is not None
    ]


def _datum(value: object, form: Any) -> str:
    if form is not None and isinstance(value, int | float):
        return f"{form(float(value))} ({value:,})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_datum(entry, None)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_datum(entry, None) for entry in value)
    return numbers.plain(value)
