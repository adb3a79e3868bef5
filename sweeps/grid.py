"""IsoFLOP grid: budgets x sizes x architectures x context lengths, and the rules that fill in each run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sweeps.fields import Arch, pick
from sweeps.spec import ExpectedOptimum, LearningRate, Schedule, Shape, SpecError, SweepSpec
from xlstm.accounting import build_config, count_parameters, training_flops
from xlstm.config import ModelConfig
from xlstm.run_spec import OptimizerSpec

T = TypeVar("T")


def ladder_configs(spec: SweepSpec, arch: Arch, vocab_size: int) -> list[ModelConfig]:
    """Every rung of the ladder for one architecture, smallest N first."""
    rungs = [shape for shape in spec.ladder.shapes if shape.archs is None or arch in shape.archs]
    return sorted((_config(spec, shape, arch, vocab_size) for shape in rungs), key=count_parameters)


def _config(spec: SweepSpec, shape: Shape, arch: Arch, vocab_size: int) -> ModelConfig:
    ladder = spec.ladder
    if shape.num_heads is not None:
        heads = pick(shape.num_heads, arch)
    else:
        heads = max(1, shape.d_model // pick(ladder.head_dim, arch))
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": shape.d_model,
        "num_blocks": shape.num_blocks,
        "num_heads": heads,
        "ffn_factor": ladder.ffn_factor,
        "ffn_multiple_of": ladder.ffn_multiple_of,
    }
    try:
        return build_config(arch, **common, chunk_size=ladder.chunk_size)
    except ValueError as error:
        raise SpecError(f"ladder.shapes: d_model {shape.d_model} does not fit {arch}: {error}") from error


def expected_N(rule: ExpectedOptimum, budget: float) -> float:
    """N* = N (C / C_0)^exponent, the guess that centres a budget's sizes."""
    return rule.N * (budget / rule.budget) ** rule.exponent


def sizes_around(
    configs: Sequence[ModelConfig], center: float, spread: float, count: int | None
) -> list[ModelConfig]:
    """`count` rungs whose ln N lie nearest to an even grid of width ln `spread` around `center`; all if None.

    The grid slides, keeping its width, where the ladder ends before it does, so that a budget never gets
    fewer sizes than asked for while the ladder still has them.
    """
    if count is None or count >= len(configs):
        return list(configs)
    log_N = [math.log(count_parameters(config)) for config in configs]
    half = math.log(spread) / 2
    low = min(max(math.log(center) - half, log_N[0]), max(log_N[-1] - 2 * half, log_N[0]))
    targets = [low + 2 * half * j / max(count - 1, 1) for j in range(count)]
    free = set(range(len(configs)))
    for target in targets:
        nearest = min(free, key=lambda index: abs(log_N[index] - target))
        free.remove(nearest)
    return [config for index, config in enumerate(configs) if index not in free]


def batch_sequences(spec: SweepSpec, budget: float, context_length: int, d_model: int) -> int:
    """Sequences a step: the rule in tokens, whole sequences, at least one."""
    rule = spec.batch
    if rule.by_width is not None:
        tokens: float = _at_width(rule.by_width, d_model, "batch.by_width")
    else:
        assert rule.tokens is not None
        tokens = rule.tokens * (budget / rule.reference_budget) ** rule.exponent
    return max(1, round(tokens / context_length))


def exact_steps(
    spec: SweepSpec, budget: float, config: ModelConfig, context_length: int, batch_size: int
) -> float:
    """Steps that spend `budget` FLOPs, before they are rounded."""
    ffn = spec.ladder.ffn_factor * config.d_model if spec.ladder.ffn_counted == "exact" else None
    return budget / training_flops(config, context_length, batch_size * context_length, ffn_dim=ffn)


def steps_for(
    spec: SweepSpec, budget: float, config: ModelConfig, context_length: int, batch_size: int
) -> int | None:
    """Steps of a run by the rule of `spec.steps`; None where they are fewer than its minimum.

    SpecError where rounding would miss the budget by more than its tolerance.
    """
    rule, exact = spec.steps, exact_steps(spec, budget, config, context_length, batch_size)
    steps = rule.multiple_of * max(1, round(exact / rule.multiple_of))
    if steps < rule.minimum:
        return None
    error = steps / exact - 1
    if abs(error) > rule.tolerance:
        raise SpecError(
            f"budgets: {budget:.3g} FLOPs buy {exact:.1f} steps of {config.arch} d_model"
            f" {config.d_model} x {config.num_blocks} blocks at batch.tokens {batch_size * context_length},"
            f" off budget by {error:+.1%}; take a smaller size, a smaller batch or a larger budget"
        )
    return steps


def peak_learning_rate(rule: LearningRate, d_model: int) -> float:
    """Peak rate of a width: power law capped at `maximum`, or the table's entry."""
    if rule.by_width is not None:
        return _at_width(rule.by_width, d_model, "learning_rate.by_width")
    assert rule.base is not None
    return min(rule.maximum, rule.base * (rule.reference_width / d_model) ** rule.exponent)


def optimizer_spec(spec: SweepSpec, config: ModelConfig, steps: int, tokens_per_step: int) -> OptimizerSpec:
    """AdamW and its schedule for a run of `steps` steps.

    SpecError where a warm-up by the size of the model leaves no steps between it and the cool-down.
    """
    schedule: Schedule = spec.schedule
    warmup = _warmup_steps(schedule, config, steps, tokens_per_step)
    cooldown = min(schedule.cooldown_steps_max, round(schedule.cooldown_fraction * steps))
    if schedule.kind == "wsd":
        cooldown = max(1, cooldown)  # a branch is a run with steps of its own
    if schedule.warmup_ratio is not None and warmup + cooldown >= steps:
        raise SpecError(
            f"schedule.warmup_tokens_per_parameter = {schedule.warmup_ratio:g}: warms {config.arch} d_model"
            f" {config.d_model} x {config.num_blocks} blocks up for {warmup} of {steps} steps and leaves none"
            f" before the cool-down of {cooldown}; take less of it, or a smaller size or batch"
        )
    return OptimizerSpec(
        peak_lr=peak_learning_rate(pick(spec.learning_rate, config.arch), config.d_model),
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        cosine_floor=schedule.cosine_floor if schedule.kind == "cosine" else 1.0,
        schedule=schedule.kind,
        **spec.optimizer.model_dump(),
    )


def _warmup_steps(schedule: Schedule, config: ModelConfig, steps: int, tokens_per_step: int) -> int:
    if schedule.warmup_ratio is None:
        wanted = round(schedule.warmup_fraction * steps)
    else:
        wanted = max(1, round(schedule.warmup_ratio * count_parameters(config) / tokens_per_step))
    return min(schedule.warmup_steps_max, wanted)


def _at_width(table: Mapping[int, T], d_model: int, key: str) -> T:
    """The entry of the smallest listed width that is at least the model's."""
    widths = [width for width in sorted(table) if width >= d_model]
    if not widths:
        raise SpecError(f"{key}: no entry covers d_model {d_model}; add one for a width >= {d_model}")
    return table[widths[0]]
