"""A plan: the table of runs that a spec and a corpus imply, in the order in which they are trained."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import polars as pl

from sweeps.fields import Arch, pick
from sweeps.grid import (
    batch_sequences,
    expected_N,
    ladder_configs,
    optimizer_spec,
    sizes_around,
    steps_for,
)
from sweeps.spec import SpecError, SweepSpec
from xlstm.accounting import count_parameters, training_flops
from xlstm.config import ModelConfig
from xlstm.run_spec import DataSpec, RunSpec, canonical_json
from xlstm.trunk import branch_step, has_trunk, trunk_key

BYTES_PER_PARAMETER = 16
"""fp32 weights, gradients and two AdamW moments; activations come on top."""
PROCESS_BYTES = 400 * 2**20
"""Of a training on a CPU before its first step: interpreter and libraries."""
ACTIVATIONS_PER_BLOCK = 20
"""Numbers that the backward of a block needs, a token and a unit of width, beside those of its FFN."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A RunSpec and what the sweep knows of it."""

    spec: RunSpec
    name: str
    budget: float
    """Nominal FLOPs of the IsoFLOP group."""
    N: int
    N_non_embedding: int
    train_flops: float
    """Of the whole path from step 0: what the run costs by itself."""
    estimated_s: float
    memory_bytes: int
    """A guess of what the training takes, so that runs start only where they fit."""
    said_before: Mapping[str, str] = field(default_factory=dict)
    """Tags that its record is to show beside the plan's, such as a prediction."""
    begins_at: int = 0
    """Steps that a run planned before it has trained for both by then: see `share_trunks`."""

    @property
    def spent_flops(self) -> float:
        """What is left to spend on it where the trunks of the plan are shared."""
        return self.train_flops * (1 - self.begins_at / self.spec.steps)

    @property
    def arch(self) -> str:
        return self.spec.model.arch

    @property
    def D(self) -> int:
        return self.spec.tokens

    @property
    def run_key(self) -> str:
        return self.spec.run_key

    @property
    def tags(self) -> dict[str, str]:
        """What the tracker must know of a run beyond its parameters, so that a run table can be gathered."""
        return {
            "isoflop.run_key": self.run_key,
            "isoflop.run_name": self.name,
            "isoflop.arch": self.spec.model.arch,
            "isoflop.budget": repr(self.budget),
            "isoflop.N": str(self.N),
            "isoflop.N_non_embedding": str(self.N_non_embedding),
            "isoflop.D": str(self.D),
            "isoflop.train_flops": repr(self.train_flops),
            "isoflop.spec": canonical_json(self.spec),
            **self.said_before,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Runs in execution order.

    Cheap budgets first, of a budget the centre and the ends of every parabola before the rest, and of both
    the longest first: a first rough law comes soonest, and no long run is left to the end. A trunk grows in
    that order too, from the branch of its smallest budget to that of its largest.
    """

    spec: SweepSpec
    runs: tuple[PlannedRun, ...]

    @cached_property
    def table(self) -> pl.DataFrame:
        """One row a run, in execution order, with the columns of the run table that are known beforehand."""
        return pl.DataFrame([_row(run) for run in self.runs])

    @property
    def train_flops(self) -> float:
        return sum(run.train_flops for run in self.runs)

    @property
    def spent_flops(self) -> float:
        """The same less what runs share."""
        return sum(run.spent_flops for run in self.runs)


def make_plan(spec: SweepSpec, data: DataSpec, vocab_size: int) -> Plan:
    """Lay out every run of a sweep on one corpus. SpecError names what does not fit."""
    runs = [run for cell in _cells(spec) for run in _group(spec, *cell, data, vocab_size)]
    ordered = [run for _, run in sorted(runs, key=lambda item: item[0])]
    return Plan(spec=spec, runs=tuple(share_trunks(ordered)))


def share_trunks(runs: Iterable[PlannedRun]) -> Iterator[PlannedRun]:
    """The runs in their order, each beginning where one before it has brought their trunk."""
    reached: dict[str, int] = {}
    for run in runs:
        if not has_trunk(run.spec):
            yield run
            continue
        key, own = trunk_key(run.spec), branch_step(run.spec)
        begins_at = min(reached.get(key, 0), own)
        reached[key] = max(reached.get(key, 0), own)
        share = 1 - begins_at / run.spec.steps
        yield replace(run, begins_at=begins_at, estimated_s=run.estimated_s * share)


def branch_points(runs: Iterable[PlannedRun]) -> dict[str, tuple[int, ...]]:
    """By trunk key: the steps after which runs branch, ascending."""
    found: dict[str, set[int]] = {}
    for run in runs:
        if has_trunk(run.spec):
            found.setdefault(trunk_key(run.spec), set()).add(branch_step(run.spec))
    return {key: tuple(sorted(steps)) for key, steps in found.items()}


def _cells(spec: SweepSpec) -> Iterator[tuple[Arch, int, float]]:
    for context_length in spec.context_lengths:
        for budget in spec.budgets_of(context_length):
            for arch in spec.archs:
                yield arch, context_length, budget


def _group(
    spec: SweepSpec, arch: Arch, context_length: int, budget: float, data: DataSpec, vocab_size: int
) -> Iterator[tuple[tuple[float, int, bool, float, int, int], PlannedRun]]:
    """The runs of one parabola, each with its sort key."""
    configs = _affordable(spec, arch, context_length, budget, vocab_size)
    center = expected_N(pick(spec.expected_optimum, arch), budget) if spec.expected_optimum else 0.0
    sizes = sizes_around(configs, center, spec.ladder.spread, spec.ladder.sizes_per_budget)
    for position, config in enumerate(sizes):
        for seed in spec.seeds:
            run = planned_run(spec, config, context_length, budget, seed, data)
            rest = position not in (0, len(sizes) // 2, len(sizes) - 1)  # three points make a parabola
            yield (budget, seed, rest, -run.estimated_s, context_length, spec.archs.index(arch)), run


def _affordable(
    spec: SweepSpec, arch: Arch, context_length: int, budget: float, vocab_size: int
) -> list[ModelConfig]:
    """The rungs that a budget trains for the least number of steps or more."""
    configs = ladder_configs(spec, arch, vocab_size)
    if spec.steps.minimum == 1:
        return configs
    kept = []
    for config in configs:
        batch_size = batch_sequences(spec, budget, context_length, config.d_model)
        if steps_for(spec, budget, config, context_length, batch_size) is not None:
            kept.append(config)
    if not kept:
        raise SpecError(
            f"steps.minimum = {spec.steps.minimum}: {budget:.3g} FLOPs buy fewer steps of every {arch} at"
            f" context {context_length}; add smaller shapes, or take a larger budget"
        )
    return kept


def planned_run(
    spec: SweepSpec, config: ModelConfig, context_length: int, budget: float, seed: int, data: DataSpec
) -> PlannedRun:
    """The run of one model at one budget. SpecError where the budget does not buy whole steps of it."""
    batch_size = batch_sequences(spec, budget, context_length, config.d_model)
    steps = steps_for(spec, budget, config, context_length, batch_size)
    assert steps is not None  # the rungs that are too large for the budget are left out
    N = count_parameters(config)
    _check_memory(spec, config, N)
    run_spec = RunSpec(
        model=config,
        data=data,
        optimizer=optimizer_spec(spec, config, steps, batch_size * context_length),
        context_length=context_length,
        batch_size=batch_size,
        steps=steps,
        validation_tokens=spec.validation.tokens,
        validation_every=max(1, -(-steps // spec.validation.times)),
        seed=seed,
        precision=spec.precision,
    )
    train_flops = training_flops(config, context_length, run_spec.tokens)
    return PlannedRun(
        spec=run_spec,
        name=f"{config.arch}-{context_length}-{budget:.2g}-{config.d_model}x{config.num_blocks}-s{seed}",
        budget=budget,
        N=N,
        N_non_embedding=count_parameters(config, embedding=False),
        train_flops=train_flops,
        estimated_s=train_flops / spec.resources.flops_per_s + steps * spec.resources.step_overhead_s,
        memory_bytes=memory_bytes(config, N, batch_size * context_length, spec.precision),
    )


def memory_bytes(config: ModelConfig, N: int, tokens: int, precision: str) -> int:
    """Rough memory of a training with `tokens` a step: parameters four times, activations, logits in fp32."""
    inside = max(getattr(config, "ffn_dim", 0), getattr(config, "inner_dim", 0))
    block = ACTIVATIONS_PER_BLOCK * config.d_model + 4 * inside
    activations = config.num_blocks * block * (2 if precision == "bf16" else 4)
    logits = 3 * config.vocab_size * 4
    return PROCESS_BYTES + N * BYTES_PER_PARAMETER + tokens * (activations + logits)


def _check_memory(spec: SweepSpec, config: ModelConfig, N: int) -> None:
    limit = spec.resources.memory_gib
    needed = N * BYTES_PER_PARAMETER / 2**30
    if limit is not None and needed > limit:
        raise SpecError(
            f"ladder.shapes: {config.arch} d_model {config.d_model} x {config.num_blocks} blocks needs"
            f" {needed:.3g} GiB for weights and optimiser, resources.memory_gib is {limit:g}; drop the size"
        )


def _row(run: PlannedRun) -> dict[str, object]:
    spec = run.spec
    return {
        "run_key": run.run_key,
        "run_name": run.name,
        "arch": spec.model.arch,
        "context_length": spec.context_length,
        "budget": run.budget,
        "N": float(run.N),
        "N_non_embedding": float(run.N_non_embedding),
        "D": float(run.D),
        "train_flops": run.train_flops,
        "planned_spent_flops": run.spent_flops,
        "budget_error": run.train_flops / run.budget - 1,
        "token_param_ratio": run.D / run.N,
        "steps": spec.steps,
        "batch_size": spec.batch_size,
        "peak_lr": spec.optimizer.peak_lr,
        "seed": spec.seed,
        "d_model": spec.model.d_model,
        "num_blocks": spec.model.num_blocks,
        "num_heads": spec.model.num_heads,
        "estimated_s": run.estimated_s,
        "spec": canonical_json(spec),
    }
