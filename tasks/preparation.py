"""From the name of a profile to a plan: spec, corpus, table of runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from sweeps.gather import finished_runs
from sweeps.laws.analysis import HARMLESS_EPOCHS
from sweeps.laws.planning import describe_plan_quality
from sweeps.laws.text import describe_plan
from sweeps.plan import Plan, PlannedRun, make_plan
from sweeps.spec import SpecError, SweepSpec
from sweeps.spec_files import Yaml12Loader, json_schema, load_spec, parse_spec
from tasks import tracking
from tasks.devices import device_kind, machine, runs_at_once
from tasks.forecast import Pace, makespan, pace
from tasks.provenance import corpus_facts
from tasks.state import State
from xlstm.data import Corpus, TokenStream, prepare_corpus, validation_windows
from xlstm.data.corpus import META
from xlstm.run_spec import DataSpec
from xlstm.training.files import write_atomically

__all__ = [
    "PlanView",
    "finished_keys",
    "json_schema",
    "parse_override",
    "plan_runs",
    "prepare_data",
    "read_spec",
    "save_plan",
    "view_plan",
]


def read_spec(profile: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSpec:
    """The spec of a profile or file, with dotted keys set to other values: {"resources.threads": 2}.

    Raises SpecError, one line.
    """
    spec = load_spec(profile)
    if not overrides:
        return spec
    fields = spec.model_dump(mode="json")
    for key, value in overrides.items():
        _set(fields, key, value)
    return parse_spec(fields, origin=f"{profile} with overrides")


def _set(fields: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    section: Any = fields
    for part in path:
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise SpecError(f"override {key}: there is no such section")
    section[last] = value


def parse_override(text: str) -> tuple[str, Any]:
    """`resources.threads=2` as key and value; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"override {text!r}: write key=value, as resources.threads=2")
    try:
        return key.strip(), yaml.load(value, Loader=Yaml12Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"override {text!r}: the value is not YAML") from error


def prepare_data(spec: SweepSpec, state: State) -> Corpus:
    """The tokenised corpus of a spec, made once a state folder. CorpusError, one line."""
    source = spec.data.corpus_spec()
    return prepare_corpus(source, state.data / source.folder_name)


def plan_runs(spec: SweepSpec, corpus: Corpus) -> Plan:
    """Lay out the runs of a spec on its corpus.

    SpecError where `data.vocab_size` is less than the tokenizer has; CorpusError where a split is too small
    for the context lengths or `validation.tokens`, which otherwise every training would find out by itself.
    """
    for context_length in spec.context_lengths:
        TokenStream(corpus.train, context_length, batch_size=1, seed=0)
        validation_windows(corpus.validation, context_length, spec.validation.tokens)
    return make_plan(spec, corpus.spec(), vocab_size(spec, corpus))


def vocab_size(spec: SweepSpec, corpus: Corpus) -> int:
    """Of the models: what the spec declares, or else the tokenizer's. SpecError where it declares too few."""
    declared, found = spec.data.vocab_size, corpus.meta.vocab_size
    if declared is not None and declared < found:
        raise SpecError(f"data.vocab_size = {declared}: the tokenizer has {found}; give at least that many")
    return declared or found


def _is_prepared(spec: SweepSpec, state: State) -> bool:
    return (state.data / spec.data.corpus_spec().folder_name / META).exists()


def _plan_without_corpus(spec: SweepSpec) -> tuple[Plan, str]:
    """The plan for the declared vocabulary, and what to say of the corpus; its run keys are not yet final."""
    source, declared = spec.data.corpus_spec(), spec.data.vocab_size
    assert declared is not None
    data = DataSpec(name=source.key_name, tokenizer=source.tokenizer_label, content_hash="not prepared")
    planned = f"not prepared; planned for a vocabulary of {declared:,}"
    return make_plan(spec, data, declared), f"{source.label}, {data.tokenizer}: {planned}"


def save_plan(plan: Plan, corpus: Corpus, state: State) -> None:
    """Write spec, plan and the facts of the corpus to the sweep's folder, where reports find them again."""
    folder = state.sweep_dir(plan.spec.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "spec.yaml", plan.spec.yaml)
    write_atomically(folder / "corpus.json", json.dumps(corpus_facts(corpus), indent=1))
    temporary = folder / ".plan.parquet"
    plan.table.write_parquet(temporary)
    temporary.replace(folder / "plan.parquet")


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """A plan as a user wants to see it before it costs anything."""

    rows: list[dict[str, Any]]
    """Columns of `Plan.table`."""
    train_flops: float
    spent_flops: float
    """Less than `train_flops` where runs share trunks."""
    estimated_s: float
    """Of the runs that are not finished, with `slots` at a time."""
    measured: bool
    """Whether the estimate rests on runs that were finished here, and not on the spec's guess alone."""
    slots: int
    device: str
    cached: int
    corpus: str
    quality: str
    """What the grid can be expected to tell of the exponents and of the optimum."""


def view_plan(spec: SweepSpec, state: State) -> PlanView:
    """Plan a sweep without running it; nothing is trained. A sweep for GPUs can be planned without one.

    The corpus is prepared, unless the spec declares its vocabulary: then a plan needs no text.
    """
    if spec.data.vocab_size is not None and not _is_prepared(spec, state):
        plan, corpus_said = _plan_without_corpus(spec)
    else:
        corpus = prepare_data(spec, state)
        plan, meta = plan_runs(spec, corpus), corpus.meta
        corpus_said = (
            f"{meta.name}, {meta.tokenizer}: {meta.train.tokens:,} training tokens from"
            f" {meta.train.documents:,} files, unigram loss {meta.unigram_entropy:.3f} nats per token"
            f"{repetition(plan.table, meta.train.tokens)}"
        )
    done, rate = finished_keys(state), measured_pace(plan.runs, state)
    here = machine()
    elsewhere = spec.resources.device == "cuda" and not here.gpus
    at_once = 1 if elsewhere else runs_at_once(spec.resources, here)
    left_s = [rate.seconds(run) for run in plan.runs if run.run_key not in done]
    return PlanView(
        rows=plan.table.to_dicts(),
        train_flops=plan.train_flops,
        spent_flops=plan.spent_flops,
        estimated_s=makespan([], left_s, at_once),
        measured=rate.overall is not None,
        slots=at_once,
        device="a GPU, of which this machine has none" if elsewhere else device_kind(spec.resources, here),
        cached=sum(run.run_key in done for run in plan.runs),
        corpus=corpus_said,
        quality=describe_plan(
            describe_plan_quality(plan.table, finished=_runs_so_far(state.sweep_dir(spec.name)))
        ),
    )


def repetition(plan: pl.DataFrame, tokens: int) -> str:
    """How many runs of a plan go through `tokens` of text more than once; nothing where none does."""
    repeating = plan.filter(pl.col("D") > tokens).sort("D", descending=True)
    if repeating.is_empty():
        return ""
    most, epochs = repeating["run_name"][0], repeating["D"][0] / tokens
    said = f"{repeating.height} of {plan.height} runs repeat it, up to {epochs:.3g} epochs ({most})"
    if epochs <= HARMLESS_EPOCHS:
        return f"; {said}"
    return (
        f"\nwarning: {said}; beyond {HARMLESS_EPOCHS:.0f}, repeated tokens are worth less than new ones:"
        " give more text, or smaller budgets"
    )


def _runs_so_far(folder: Path) -> pl.DataFrame | None:
    """The run table that the sweep left when it was last gathered: its vertices centre later budgets."""
    path = folder / "runs.parquet"
    return pl.read_parquet(path) if path.exists() else None


def measured_pace(runs: Sequence[PlannedRun], state: State) -> Pace:
    """How those of planned runs that are finished compare with their estimates."""
    if not state.is_tracked:
        return pace([])
    took = tracking.wall_times(state)
    return pace((run, took[run.run_key]) for run in runs if run.run_key in took)


def finished_keys(state: State) -> set[str]:
    """Run keys that need no training again; none before there is a database."""
    return set(finished_runs(state.tracking_uri)) if state.is_tracked else set()
