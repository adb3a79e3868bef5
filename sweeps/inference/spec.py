"""BenchmarkSpec: a grid of inference measurements, as a user writes it in YAML."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from sweeps.fields import Count, PerArchCount, Positive, Section, pick
from sweeps.spec_files import find_profile, parse_fields, read_yaml

PROFILES = Path(__file__).parent / "profiles"


Arch = Literal["mlstm", "transformer"]
"""Those that are measured in decoding."""


class Size(Section):
    """One model size, in every architecture unless `archs` says which."""

    name: Annotated[str, Field(min_length=1)]
    """Pairs the architectures in figures: 160M, 1.4B."""
    archs: list[Arch] | None = None
    d_model: Count
    num_blocks: Count
    num_heads: PerArchCount


class Serving(Section):
    """What the total cost is asked for: a sweep whose laws say what a loss takes to train, and a load."""

    sweep: str
    """Profile of the sweep whose finished runs hold the laws, as `isoflop report` knows it."""
    tokens: Positive = 1e9
    """Tokens to generate over the model's life."""
    prompt_length: Count
    """Tokens of each prompt."""
    generated_length: Count
    """Tokens of each answer."""
    batch_size: Count = 1
    """Sequences that are decoded together."""
    losses: list[Positive] = []
    """Nats per token; without any, those that the sweep's budgets reach."""
    train_flops_per_s: Positive | None = None
    """Speed of training; without it, what the runs of the sweep achieved at its largest budget."""


class BenchmarkSpec(Section):
    """One benchmark: architectures x sizes x prefill lengths x batch sizes on this machine's device."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    description: str = ""
    measurements: Literal["here", "published"] = "here"
    """published: nothing is measured; those of *xLSTM Scaling Laws* that `isoflop import` has brought in."""
    archs: list[Arch] = Field(default=["mlstm", "transformer"], min_length=1)
    sizes: list[Size] = []
    prefill_lengths: list[Count] = []
    batch_sizes: list[Count] = []
    vocab_size: Count = 50_304
    ffn_multiple_of: Count = 64
    chunk_size: Count = 64
    """Of the mLSTM's chunkwise form."""
    generated: Count = 100
    """Decode steps over which a step time is a mean."""
    repetitions: Count = 3
    dtype: Literal["fp32", "bf16"] = "bf16"
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count = 1
    """On a CPU."""
    timeout_s: Positive = 600
    """After which a point's process is ended; the point is a row that says so."""
    memory_gib: Positive | None = None
    """Points whose weights and cache alone need more are rows that say so and are not tried; without it, the
    device's memory."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the points that the runtime model is fitted without, to be predicted."""
    resamples: Annotated[int, Field(ge=10)] = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0
    serving: Serving | None = None

    @field_validator("archs", "prefill_lengths", "batch_sizes")
    @classmethod
    def _no_repeats(cls, values: list[Any]) -> list[Any]:
        repeated = [v for v in values if values.count(v) > 1]
        if repeated:
            raise ValueError(f"{repeated[0]} stands there twice; remove one")
        return values

    @model_validator(mode="after")
    def _complete(self) -> "BenchmarkSpec":
        grid = ("sizes", "prefill_lengths", "batch_sizes")
        if self.measurements == "published":
            return self
        if empty := [name for name in grid if not getattr(self, name)]:
            raise ValueError(f"{empty[0]} is empty: the grid needs at least one")
        names = [size.name for size in self.sizes]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"sizes: {repeated[0]} stands there twice; rename one")
        for arch in self.archs:
            having = [size for size in self.sizes if size.archs is None or arch in size.archs]
            if not having:
                raise ValueError(f"sizes: none for {arch}; add one, or take {arch} out of archs")
            for size in having:
                if not size.num_heads.keys() & {arch, "all"}:
                    raise ValueError(f"sizes: {size.name} has no num_heads for {arch}; add it")
                if size.d_model % (2 * pick(size.num_heads, arch)):
                    raise ValueError(
                        f"sizes: {size.name}: d_model {size.d_model} is no multiple of 2 num_heads of {arch}"
                        f" ({2 * pick(size.num_heads, arch)})"
                    )
        return self

    @cached_property
    def yaml(self) -> str:
        """The spec as it was understood, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)


def load_benchmark(source: str | Path, overrides: Mapping[str, Any] | None = None) -> BenchmarkSpec:
    """A spec from a YAML file or a shipped profile, with keys set to other values.

    Raises SpecError, one line that names file, key and value.
    """
    path = find_profile(source, PROFILES)
    fields = read_yaml(path)
    origin = str(path)
    if overrides:
        origin += " with overrides"
        for key, value in overrides.items():
            section, _, inner = key.partition(".")
            if inner and isinstance(fields.get(section), dict):
                fields[section] = {**fields[section], inner: value}
            else:
                fields[key] = value
    return parse_fields(BenchmarkSpec, fields, origin)
