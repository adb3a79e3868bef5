"""CapabilitySpec: what a profile says. Read from YAML; every fault is one line that names file, key and
value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sweeps.capability.fields import CapabilityError, build
from xlstm.arch_names import canonical_arch
from xlstm.capability.task import Task
from xlstm.capability.tasks import task_from_dict

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Which model of every architecture: the one whose parameters are nearest to a number."""

    parameters: int
    """N with embeddings."""
    num_blocks: int = 2
    num_heads: int = 2
    head_multiple: int = 2
    """Widths of heads are multiples of it: kernels on a GPU like 16."""
    multiple_of: int = 8
    """Of the widths of feed-forward layers."""
    tolerance: float = 0.15
    """An architecture that has no width this near, relatively, is refused."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained: AdamW, linear warm-up, cosine, linear cool-down."""

    steps: int
    batch_size: int
    """Sequences a step."""
    peak_lr: Mapping[str, Any] | float | tuple[float, ...]
    """Rates to choose from, for all or by architecture; the best on held-out examples counts."""
    warmup_fraction: float = 0.1
    cooldown_fraction: float = 0.1
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision = {self.precision!r}: must be fp32 or bf16")
        if self.warmup_fraction + self.cooldown_fraction >= 1:
            raise ValueError("warmup_fraction + cooldown_fraction must be below 1: the cosine needs steps")
        self.rates("all")

    def rates(self, arch: str) -> tuple[float, ...]:
        """The learning rates of an architecture. ValueError where there is none, or one is no rate."""
        rates = self.peak_lr
        if isinstance(rates, Mapping):
            rates = rates.get(arch, rates.get("all", ()))
        listed = tuple(rates) if isinstance(rates, list | tuple) else (rates,)
        if not listed or not all(isinstance(r, int | float) and 0 < r < 10 for r in listed):
            raise ValueError(
                f"peak_lr = {self.peak_lr!r}: give a rate, a list, or one by architecture with all"
            )
        return listed


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Text of the machine: see xlstm.capability.text and domains."""

    domains: tuple[str, ...]
    max_bytes: int
    """Text taken of each domain."""
    context_length: int
    times: int = 8
    """Perplexity by position is measured to so many times the context length."""
    windows: int = 8
    """Of that length, of each domain."""
    domain_tokens: int = 16_384

    @property
    def least_held_out(self) -> int:
        """Held-out tokens that a domain must have."""
        return max(self.domain_tokens, self.windows * self.times * self.context_length) + 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One task, and what is trained on it."""

    name: str
    task: Task | TextSource
    size: Size
    recipe: Recipe
    archs: tuple[str, ...]
    seeds: tuple[int, ...]
    step_s: Mapping[str, float] = field(default_factory=dict)
    """Measured seconds of a step, by architecture or for all: what the plan expects to take."""

    def expected_s(self, arch: str) -> float:
        """Of one training."""
        return self.recipe.steps * self.step_s.get(arch, self.step_s.get("all", 0.01))


@dataclass(frozen=True, kw_only=True)
class CapabilitySpec:
    """A suite of experiments."""

    name: str
    description: str
    experiments: tuple[Experiment, ...]
    level: float = 0.95
    """Of the intervals."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """As in a sweep's spec."""

    @property
    def archs(self) -> tuple[str, ...]:
        """Every architecture, in the order of the profile."""
        return tuple(dict.fromkeys(arch for e in self.experiments for arch in e.archs))


@dataclass(frozen=True, kw_only=True)
class _Profile:
    name: str
    archs: tuple[str, ...]
    seeds: tuple[int, ...]
    experiments: Mapping[str, Any]
    description: str = ""
    level: float = 0.95
    resources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    task: Mapping[str, Any]
    size: Mapping[str, Any]
    recipe: Mapping[str, Any]
    archs: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    step_s: Mapping[str, float] = field(default_factory=dict)


def load_suite(source: str | Path, overrides: Mapping[str, Any] | None = None) -> CapabilitySpec:
    """A shipped profile by name, or a YAML file, with dotted keys set to other values.

    CapabilityError, one line, names the file, the key and the value.
    """
    path = find_suite(source)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CapabilityError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise CapabilityError(f"{path}: holds {type(given).__name__}, not a mapping of keys")
    for key, value in (overrides or {}).items():
        _set(given, key, value)
    return parse_suite(given, origin=path.name)


def find_suite(source: str | Path) -> Path:
    """Path of a profile: a file, or the name of a shipped one."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise CapabilityError(f"{path}: no such file")
    profile = PROFILES / f"{source}.yaml"
    if not profile.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise CapabilityError(
            f"profile {source!r}: not known; use one of {known}, or the path of a .yaml file"
        )
    return profile


def parse_suite(given: Mapping[str, Any], origin: str = "suite") -> CapabilitySpec:
    """Validate a mapping. CapabilityError names the key."""
    profile = build(_Profile, given, origin)
    if not 0 < profile.level < 1:
        raise CapabilityError(f"{origin}.level = {profile.level}: must lie between 0 and 1")
    for key in ("archs", "seeds", "experiments"):
        if not getattr(profile, key):
            raise CapabilityError(f"{origin}.{key}: is empty")
    experiments = tuple(
        _experiment(name, entry, profile, f"{origin}.experiments.{name}")
        for name, entry in profile.experiments.items()
    )
    return CapabilitySpec(
        name=profile.name,
        description=profile.description,
        experiments=experiments,
        level=profile.level,
        resources=profile.resources,
    )


def _experiment(name: str, given: Any, profile: _Profile, where: str) -> Experiment:
    entry = build(_Entry, given, where)
    archs = (*(entry.archs or profile.archs), *entry.also)
    try:
        names = tuple(canonical_arch(arch) for arch in archs)
    except ValueError as error:
        raise CapabilityError(f"{where}.archs: {error}") from error
    repeated = [arch for arch in names if names.count(arch) > 1]
    if repeated:
        raise CapabilityError(f"{where}.archs: {repeated[0]} stands there twice; remove one")
    return Experiment(
        name=name,
        task=_task(entry.task, f"{where}.task"),
        size=build(Size, entry.size, f"{where}.size"),
        recipe=build(Recipe, entry.recipe, f"{where}.recipe"),
        archs=names,
        seeds=entry.seeds or profile.seeds,
        step_s=entry.step_s,
    )


def _task(given: Mapping[str, Any], where: str) -> Task | TextSource:
    if given.get("kind") == "text":
        return build(TextSource, {k: v for k, v in given.items() if k != "kind"}, where)
    try:
        task = task_from_dict(given)
    except ValueError as error:
        raise CapabilityError(f"{where.removesuffix('.task')}: {error}") from error
    assert isinstance(task, Task)
    return task


def _set(given: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    section: Any = given
    for part in path:
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise CapabilityError(f"override {key}: there is no such section")
    section[last] = value
