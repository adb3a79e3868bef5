"""SweepSpec: what a user writes in YAML. Unknown keys and impossible values fail at once, by name."""

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from sweeps.fields import Arch, ArchOrAll, Count, Fraction, PerArchCount, Positive, Section, for_all
from sweeps.laws.settings import LawSettings
from sweeps.resources import Resources
from xlstm.data.spec import CorpusSpec


class SpecError(ValueError):
    """A spec that cannot be run; the message names the file, the key, the value and the cure, on one line."""


class Shape(Section):
    """One rung of the ladder, shared by the architectures so that their sizes pair up."""

    archs: list[Arch] | None = None
    """The architectures that have this rung; without it, all."""
    d_model: Count
    num_blocks: Count
    num_heads: PerArchCount | None = None
    """Heads, for all or by architecture; without it, `d_model / head_dim` of the ladder."""


class Ladder(Section):
    """Which model sizes there are, and which of them a budget gets."""

    shapes: list[Shape] = Field(min_length=1)
    head_dim: PerArchCount = {"all": 64}
    """Value width of a head where a shape names no heads."""
    ffn_factor: Positive = 2.667
    ffn_multiple_of: Count = 64
    sizes_per_budget: Count | None = None
    """The rungs nearest to the expected optimum, evenly spread over `spread`; none takes every rung."""
    spread: Annotated[float, Field(gt=1)] = 8.0
    """Largest over smallest N at one budget, centred on the expected optimum."""
    ffn_counted: Literal["rounded", "exact"] = "rounded"
    """The feed-forward width that a budget's steps are counted with: as built, or before it was rounded."""
    chunk_size: Count = 64
    """Chunk of the mLSTM's chunkwise form; it enters its FLOP count."""

    @field_validator("shapes")
    @classmethod
    def _distinct(cls, shapes: list[Shape]) -> list[Shape]:
        seen: dict[tuple[int, int], list[list[Arch] | None]] = {}
        for shape in shapes:
            others = seen.setdefault((shape.d_model, shape.num_blocks), [])
            if any(not (shape.archs and other) or set(shape.archs) & set(other) for other in others):
                size = f"d_model {shape.d_model} with num_blocks {shape.num_blocks}"
                raise ValueError(f"{size} stands there twice; remove one")
            others.append(shape.archs)
        return shapes

    def has(self, arch: Arch) -> bool:
        """Whether any rung is one of this architecture."""
        return any(shape.archs is None or arch in shape.archs for shape in self.shapes)


class ExpectedOptimum(Section):
    """A guess of N*(C) = N (C / budget)^exponent, to centre the sizes of each budget."""

    N: Positive
    budget: Positive
    exponent: Fraction = 0.5


class LearningRate(Section):
    """Peak learning rate: `base (reference_width / d_model)^exponent`, at most `maximum`; or a table."""

    base: Positive | None = None
    reference_width: Positive = 1024
    exponent: float = 0.5
    maximum: Positive = 0.03
    by_width: dict[Count, Positive] | None = None
    """Width to rate: a model takes the entry of the smallest listed width that is at least its own."""

    @model_validator(mode="after")
    def _one_rule(self) -> "LearningRate":
        if (self.base is None) == (self.by_width is None):
            raise ValueError("give one of base (a power law in width) and by_width (a table)")
        return self


PerArchOptimum = Annotated[
    dict[ArchOrAll, ExpectedOptimum],
    BeforeValidator(for_all, json_schema_input_type=ExpectedOptimum | dict[ArchOrAll, ExpectedOptimum]),
]
PerArchLearningRate = Annotated[
    dict[ArchOrAll, LearningRate],
    BeforeValidator(for_all, json_schema_input_type=LearningRate | dict[ArchOrAll, LearningRate]),
]


class BatchSize(Section):
    """Tokens a step: `tokens (C / reference_budget)^exponent`, rounded to whole sequences; or a table."""

    tokens: Count | None = None
    reference_budget: Positive = 1.0
    exponent: Fraction = 0.0
    by_width: dict[Count, Count] | None = None
    """Width to tokens: a model takes the entry of the smallest listed width that is at least its own."""

    @model_validator(mode="after")
    def _one_rule(self) -> "BatchSize":
        if (self.tokens is None) == (self.by_width is None):
            raise ValueError("give one of tokens (a power law in the budget) and by_width (a table)")
        return self


class Steps(Section):
    """How the steps that a budget buys become the steps of a run."""

    multiple_of: Count = 1
    """Steps are rounded to the nearest multiple."""
    minimum: Count = 1
    """A size that a budget trains for fewer steps is left out at that budget."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """A run whose rounding takes it further off its budget is refused."""


class Schedule(Section):
    """Linear warm-up, a middle part, linear cool-down to zero."""

    kind: Literal["cosine", "wsd"] = "cosine"
    """The middle part: cosine to `cosine_floor` of the peak; or (wsd) the peak throughout, and the budgets of
    one size share their path and each branches off with its cool-down (arXiv:2405.18392)."""
    warmup_fraction: Fraction = 0.05
    warmup_steps_max: Count = 750
    warmup_tokens_per_parameter: Positive | None = None
    """Warm-up by the size of the model instead of a share of the steps; wsd takes 1 where nothing is said, as
    arXiv:2406.19146 advises: its warm-up must be the same at every budget."""
    cooldown_fraction: Fraction = 0.1
    cooldown_steps_max: Count = 1000
    cosine_floor: Fraction = 0.1

    @property
    def warmup_ratio(self) -> float | None:
        """Tokens of warm-up a parameter; None where the warm-up is a share of the steps."""
        default = 1.0 if self.kind == "wsd" else None
        return default if self.warmup_tokens_per_parameter is None else self.warmup_tokens_per_parameter

    @model_validator(mode="after")
    def _leave_room(self) -> "Schedule":
        if self.warmup_fraction + self.cooldown_fraction >= 1:
            raise ValueError("warmup_fraction + cooldown_fraction must be below 1: the cosine needs steps")
        return self


class Optimizer(Section):
    """AdamW; defaults as in arXiv:2510.02228."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    grad_clip: Positive = 0.5


class Data(Section):
    """Where the text comes from and how it becomes tokens; see xlstm.data.CorpusSpec."""

    name: str | None = None
    """None: python for the built-in corpus, or what the text is called: the folder or file that `paths` names
    first, without its ending, or the data set. A name that is given is part of the run keys."""
    source: Literal["python", "files", "huggingface"] = "python"
    """python: the Python sources installed on this machine, real text without a download."""
    paths: list[str] = []
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    text_field: str = "text"
    document_separator: str | None = None
    tokenizer: str = "bytes"
    """bytes, bpe:VOCABULARY (trained on this corpus), or the path of a tokenizers JSON file."""
    separator_token: str | None = None
    max_bytes: Count | None = None
    validation_fraction: float = 0.05
    seed: int = 0
    vocab_size: Count | None = None
    """Vocabulary of the models, at least the tokenizer's; without it, the tokenizer's. With it, a plan can be
    looked at before the corpus is there."""

    @model_validator(mode="after")
    def _prepares(self) -> "Data":
        self.corpus_spec()
        return self

    def corpus_spec(self) -> CorpusSpec:
        """The same fields as the data library takes them."""
        fields = self.model_dump(exclude={"vocab_size"})
        return CorpusSpec(**{**fields, "paths": tuple(self.paths)})


class Validation(Section):
    """The fixed held-out set, and how often it is looked at."""

    tokens: Count = 65_536
    times: Count = 5
    """Validations a run, the last one after the last step."""


class HoldOutRun(Section):
    """A run of each architecture beyond the grid, predicted by its law before it is trained."""

    budget_factor: Annotated[float, Field(gt=1)] = 3.0
    """Its budget, in largest budgets of the grid."""


class Laws(Section):
    """Settings of the fits; see sweeps.laws.settings."""

    law: str = "chinchilla"
    estimator: str = "huber-log"
    huber_delta: Positive = 1e-3
    resamples: Annotated[int, Field(ge=0)] = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    target_budgets: list[Positive] = []
    seed: int = 0
    profile: list[str] = []
    served_tokens: Annotated[float, Field(ge=0)] = 0.0

    def settings(self) -> LawSettings:
        """The same values as the engine takes them."""
        lists = {name: tuple(getattr(self, name)) for name in ("target_budgets", "profile")}
        return LawSettings(**{**self.model_dump(), **lists})


class SweepSpec(Section):
    """One sweep: budgets x sizes x architectures x context lengths x seeds on one corpus."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    description: str = ""
    archs: list[Arch] = Field(min_length=1)
    context_lengths: list[Annotated[int, Field(ge=8)]] = Field(min_length=1)
    budgets: list[Positive] = Field(min_length=1)
    budgets_at: dict[Count, Annotated[list[Positive], Field(min_length=1)]] = {}
    """Other budgets for a context length."""
    ladder: Ladder
    expected_optimum: PerArchOptimum | None = None
    learning_rate: PerArchLearningRate
    batch: BatchSize
    steps: Steps = Steps()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    seeds: list[int] = Field(default=[0], min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    resources: Resources = Resources()
    laws: Laws = Laws()
    holdout: HoldOutRun | None = None
    """None: the law is not put to this test."""

    @field_validator("archs", "context_lengths", "budgets", "seeds")
    @classmethod
    def _no_repeats(cls, values: list[Any]) -> list[Any]:
        repeated = sorted({v for v in values if values.count(v) > 1})
        if repeated:
            raise ValueError(f"{repeated[0]} stands there twice; remove one")
        return values

    @model_validator(mode="after")
    def _complete(self) -> "SweepSpec":
        for context_length in self.budgets_at:
            if context_length not in self.context_lengths:
                raise ValueError(f"budgets_at: {context_length} is none of context_lengths; add it there")
        for arch in self.archs:
            if not self.ladder.has(arch):
                raise ValueError(f"ladder.shapes has no rung for {arch}; add one, or one for all")
        if self.schedule.kind == "wsd" and self.batch.exponent:
            raise ValueError(
                "schedule.kind = wsd needs batch.exponent = 0: budgets with other batches share no path"
            )
        if self.ladder.sizes_per_budget is not None and self.expected_optimum is None:
            raise ValueError("ladder.sizes_per_budget needs expected_optimum, to centre the sizes")
        for key in ("learning_rate", "expected_optimum"):
            by_arch = getattr(self, key)
            missing = [a for a in self.archs if by_arch is not None and not by_arch.keys() & {a, "all"}]
            if missing:
                raise ValueError(f"{key} has no entry for {missing[0]}; add one, or one for all")
        return self

    def budgets_of(self, context_length: int) -> list[float]:
        """The budgets at one context length, ascending."""
        return sorted(self.budgets_at.get(context_length, self.budgets))

    def holdout_budget(self, context_length: int) -> float | None:
        """FLOPs of the run that is predicted before it is trained; None where there is none."""
        if self.holdout is None:
            return None
        return float(f"{self.holdout.budget_factor * max(self.budgets_of(context_length)):.6g}")

    def law_settings(self) -> LawSettings:
        """Settings of the fits; the budgets of hold-out runs are targets too."""
        settings = self.laws.settings()
        asked = [self.holdout_budget(context_length) for context_length in self.context_lengths]
        new = {budget for budget in asked if budget is not None} - set(settings.target_budgets)
        return replace(settings, target_budgets=(*settings.target_budgets, *sorted(new)))

    @cached_property
    def yaml(self) -> str:
        """The spec as it was understood, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)
