"""One row a run, however many files and tags hold it; what a copy adds or contradicts is kept in view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from sweeps.published.wandb_runs import Curve, PublishedRun

_COMPARED = ("loss", "train_loss", "num_params", "steps", "batch_size", "peak_lr")
"""What two copies of a run must agree on."""
_TOLERANCE = 1e-9
Key = tuple[str, str]
_SHAPE = ("arch", "context_length", "d_model", "num_blocks", "num_heads", "steps", "batch_size", "peak_lr")
"""What determines a run of the paper but for its id: all have seed 0 and one corpus."""


@dataclass(kw_only=True)
class MergedRun:
    """A run with the best that its copies know."""

    fields: dict[str, Any]
    curve: Curve | None
    disagreements: list[str]


def merge(runs: Sequence[PublishedRun]) -> list[MergedRun]:
    """The distinct runs, in the order of their first copy.

    Copies have the same id; or the same name and the same loss to the last digit, which no second training
    has; or, where one has no id, the same name. The first copy counts: sources come best first. `copies` is
    how often one file lists the run, under tags that `source_tags` joins. A reconstruction without an id
    gives way to a run with one that trained the same shape for as long.
    """
    merged: dict[Key, MergedRun] = {}
    by_name: dict[str, list[Key]] = {}
    for run in runs:
        key = _identity(run.fields, merged, by_name)
        if key in merged:
            _add(merged[key], run)
        else:
            fields = {"copies": 1, **run.fields}
            merged[key] = MergedRun(fields=fields, curve=run.curve, disagreements=[])
            by_name.setdefault(run.fields["run_name"], []).append(key)
    with_id = {_shape(run.fields) for run in merged.values() if run.fields.get("published_id")}
    return [
        run
        for run in merged.values()
        if run.fields.get("published_id") or not _reconstructed(run) or _shape(run.fields) not in with_id
    ]


def superseded_keys(runs: pl.DataFrame) -> set[str]:
    """Keys of runs without an id that a run with one replaces, of a table of PUBLISHED_SCHEMA.

    It has the same name; or the same shape and length, where the one without an id is a reconstruction.
    """
    named = runs.filter(pl.col("published_id").is_not_null())
    nameless = runs.filter(pl.col("published_id").is_null())
    same_name = nameless.join(named, on="run_name", how="semi")
    same_shape = nameless.filter(~pl.col("loss_exact")).join(named, on=list(_SHAPE), how="semi")
    return {*same_name["run_key"], *same_shape["run_key"]}


def _identity(fields: dict[str, Any], merged: dict[Key, MergedRun], by_name: dict[str, list[Key]]) -> Key:
    """Key of the run that these fields are of. One without an id is the only one of its name, or its own."""
    name, run_id = fields["run_name"], fields.get("published_id")
    namesakes = by_name.get(name, [])
    if run_id:
        same = [key for key in namesakes if key == ("name", name) or _same_loss(merged[key].fields, fields)]
        return same[0] if same else ("id", run_id)
    return namesakes[0] if len(namesakes) == 1 else ("name", name)


def _same_loss(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours.get("loss") is not None and ours.get("loss") == theirs.get("loss")


def _add(run: MergedRun, copy: PublishedRun) -> None:
    fields = run.fields
    for name in _COMPARED:
        ours, theirs = fields.get(name), copy.fields.get(name)
        if not isinstance(ours, int | float) or not isinstance(theirs, int | float):
            continue
        if name == "loss" and copy.fields.get("loss_exact") is False:
            agree = copy.fields["loss_low"] <= ours <= copy.fields["loss_high"]
        else:
            agree = abs(ours - theirs) <= _TOLERANCE * abs(ours)
        if not agree:
            run.disagreements.append(
                f"{name} of {fields['run_name']} is {ours!r} in {fields['source_file']}"
                f" and {theirs!r} in {copy.fields['source_file']}; the first stands"
            )
    if copy.fields["source_file"] == fields["source_file"]:
        fields["copies"] += 1
    tags = [tag for tag in str(fields.get("source_tags") or "").split(",") if tag]
    new = [tag for tag in str(copy.fields.get("source_tags") or "").split(",") if tag]
    fields |= {name: value for name, value in copy.fields.items() if fields.get(name) is None}
    fields["source_tags"] = ",".join(dict.fromkeys([*tags, *new])) or None
    if run.curve is None:
        run.curve = copy.curve


def _reconstructed(run: MergedRun) -> bool:
    return run.fields.get("loss_exact") is False


def _shape(fields: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(fields.get(name) for name in _SHAPE)
