"""The runs of a suite: every experiment, architecture, learning rate and seed, as RunSpecs."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal, cast

from sweeps.capability.fields import CapabilityError
from sweeps.capability.spec import CapabilitySpec, Experiment, Size, TextSource
from xlstm.accounting import build_config, count_parameters, training_flops
from xlstm.capability.tasks import TaskSpec
from xlstm.capability.text import Domain, DomainText
from xlstm.config import ModelConfig
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec

WIDEST = 2048
CLOSE = 0.03
"""Relative difference in N that is close enough."""
FFN_BOUNDS = (0.5, 4.0)
"""Of the width of feed-forward layers over the model's."""


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """A RunSpec and its place in the suite."""

    spec: RunSpec
    experiment: str
    arch: str
    name: str
    N: int
    N_non_embedding: int
    train_flops: float
    estimated_s: float


def plan_suite(
    suite: CapabilitySpec, domains: Mapping[str, tuple[Domain, ...]] | None = None
) -> tuple[SuiteRun, ...]:
    """Every run, the long ones of an experiment first, so that none is left alone to the end.

    `domains`: the text found on this machine, by experiment. CapabilityError where an architecture has no
    model near the wanted size.
    """
    runs = [
        run
        for experiment in suite.experiments
        for arch in experiment.archs
        for run in _runs(experiment, arch, (domains or {}).get(experiment.name, ()))
    ]
    return tuple(sorted(runs, key=lambda run: -run.estimated_s))


def _runs(experiment: Experiment, arch: str, domains: tuple[Domain, ...]) -> list[SuiteRun]:
    task, context_length = _task(experiment, domains)
    model = sized_config(arch, experiment.size, task.vocab_size)
    recipe, runs = experiment.recipe, []
    for rate in recipe.rates(arch):
        optimizer = OptimizerSpec(
            peak_lr=rate,
            warmup_steps=max(1, round(recipe.warmup_fraction * recipe.steps)),
            cooldown_steps=round(recipe.cooldown_fraction * recipe.steps),
            weight_decay=recipe.weight_decay,
            grad_clip=recipe.grad_clip,
        )
        for seed in experiment.seeds:
            spec = RunSpec(
                model=model,
                data=_data(experiment.name, task),
                optimizer=optimizer,
                context_length=context_length,
                batch_size=recipe.batch_size,
                steps=recipe.steps,
                validation_tokens=_held_out_tokens(task, context_length),
                validation_every=recipe.steps,
                seed=seed,
                precision=cast(Literal["fp32", "bf16"], recipe.precision),
                task=task,
            )
            runs.append(
                SuiteRun(
                    spec=spec,
                    experiment=experiment.name,
                    arch=arch,
                    name=f"{experiment.name}-{arch}-lr{rate:g}-s{seed}",
                    N=count_parameters(model),
                    N_non_embedding=count_parameters(model, embedding=False),
                    train_flops=training_flops(model, context_length, spec.tokens),
                    estimated_s=experiment.expected_s(arch),
                )
            )
    return runs


def _task(experiment: Experiment, domains: tuple[Domain, ...]) -> tuple[TaskSpec, int]:
    """The task of the RunSpecs, and the length of its training sequences."""
    source = experiment.task
    if not isinstance(source, TextSource):
        return cast(TaskSpec, source), source.length(source.trained)
    text = DomainText(
        domains=domains,
        max_bytes=source.max_bytes,
        measured_length=source.times * source.context_length,
        windows=source.windows,
        domain_tokens=source.domain_tokens,
    )
    return text, source.context_length


def _held_out_tokens(task: TaskSpec, context_length: int) -> int:
    if isinstance(task, DomainText):
        return len(task.domains) * task.domain_tokens
    return task.examples * context_length


def _data(name: str, task: TaskSpec) -> DataSpec:
    """Generated examples are determined by the task; text by the hashes of its domains, which it holds."""
    content: dict[str, Any] = asdict(task)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    tokenizer = "bytes" if isinstance(task, DomainText) else "symbols"
    return DataSpec(name=f"capability-{name}", tokenizer=tokenizer, content_hash=digest)


@cache
def sized_config(arch: str, size: Size, vocab_size: int) -> ModelConfig:
    """The model of an architecture with N near `size.parameters`: by its width, then by its feed-forward
    layers.

    Of the widths whose feed-forward layers, in bounds, bring N within CLOSE, the one that needs the least of
    it; without such layers, or where none comes so near, the nearest. CapabilityError where none is within
    the tolerance.
    """
    candidates = list(_candidates(arch, size, vocab_size))
    off = {config: abs(count_parameters(config) / size.parameters - 1) for config, _ in candidates}
    close = [(config, bent) for config, bent in candidates if off[config] <= CLOSE]
    if close:
        return min(close, key=lambda pair: pair[1])[0]
    best = min(off, key=lambda config: off[config], default=None)
    if best is None or off[best] > size.tolerance:
        nearest = f"the nearest has {count_parameters(best):,}" if best else "there is none"
        raise CapabilityError(
            f"{arch}: size.parameters = {size.parameters:,}: {nearest} in {size.num_blocks} blocks of"
            f" {size.num_heads} heads; choose another number, fewer heads, or a larger size.tolerance"
        )
    return best


def _candidates(arch: str, size: Size, vocab_size: int) -> Iterator[tuple[ModelConfig, float]]:
    """A model a width, and how far its untuned N is off, in logarithms; widths up to twice the wanted N."""
    heads = 1 if arch == "lstm" else size.num_heads
    step = heads * max(2, size.head_multiple if heads > 1 else 2)
    for width in range(step, WIDEST + 1, step):
        try:
            config = build_config(
                arch,
                vocab_size=vocab_size,
                d_model=width,
                num_blocks=size.num_blocks,
                num_heads=size.num_heads,
                ffn_multiple_of=size.multiple_of,
            )
        except ValueError as error:
            raise CapabilityError(f"{arch}: no such model at width {width}: {error}") from error
        natural = count_parameters(config)
        yield _tuned(config, size), abs(math.log(natural / size.parameters))
        if natural > 2 * size.parameters:
            return


def _tuned(config: ModelConfig, size: Size) -> ModelConfig:
    """The same with the feed-forward width that brings N nearest, within FFN_BOUNDS of the model's width."""
    width: int = getattr(config, "ffn_dim", 0)
    if not width:
        return config
    multiple, d = size.multiple_of, config.d_model
    wider = replace(config, ffn_dim=width + multiple)  # type: ignore[call-arg, arg-type]
    each = (count_parameters(wider) - count_parameters(config)) / multiple
    wanted = width + (size.parameters - count_parameters(config)) / each
    low, high = (math.ceil(bound * d / multiple) * multiple for bound in FFN_BOUNDS)
    chosen = min(max(round(wanted / multiple) * multiple, low), high)
    return replace(config, ffn_dim=chosen)  # type: ignore[call-arg, arg-type]
