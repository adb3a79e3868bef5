"""RunSpec: all that determines one training, and nothing else; its canonical JSON names the run."""

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from xlstm.capability.tasks import TaskSpec, task_from_dict
from xlstm.config import ModelConfig, config_class
from xlstm.later import is_left_out, later

TRAINING_VERSION = 1
"""Raise it when a change alters what a training computes: every run key changes with it."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The tokens that a run reads, named by content and not by path."""

    name: str
    tokenizer: str
    content_hash: str
    """SHA-256 of the tokenised train and validation shards."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """AdamW with linear warm-up, a middle part and linear cool-down to zero (arXiv:2510.02228, appendix)."""

    peak_lr: float
    warmup_steps: int
    cooldown_steps: int
    cosine_floor: float = 0.1
    """The cosine ends at this fraction of the peak, before the cool-down. Of no effect on `wsd`."""
    schedule: Literal["cosine", "wsd"] = later("cosine")
    """The middle part: `cosine` decays; `wsd` (warm-up, stable, decay) stays at the peak, so that runs of any
    length share their path up to their cool-downs: see xlstm.trunk."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """On matrices only: norms, biases and gate biases are not decayed."""
    grad_clip: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training. Host, paths, device count and the sweep that asked for it are not part of it."""

    model: ModelConfig
    data: DataSpec
    optimizer: OptimizerSpec
    context_length: int
    batch_size: int
    """Sequences a step, over all devices."""
    steps: int
    validation_tokens: int
    """Size of the fixed held-out set."""
    validation_every: int
    """Steps between validations; the last step is always validated."""
    seed: int
    precision: Literal["fp32", "bf16"] = "fp32"
    training_version: int = TRAINING_VERSION
    task: TaskSpec | None = later(None)  # noqa: RUF009 (a dataclass field)
    """A capability experiment: what is trained on, and measured in the end, where it is not the loss on a
    corpus. `data` then names it by content."""

    @property
    def tokens(self) -> int:
        """D: training tokens."""
        return self.steps * self.batch_size * self.context_length

    @property
    def run_key(self) -> str:
        """SHA-256 of the canonical JSON: the same key means the same run."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()


def canonical_json(spec: RunSpec) -> str:
    """The spec as JSON with sorted keys and no spaces; independent of field order and of the process.

    Fields declared with `later` are left out at their defaults: the keys of earlier runs stay what they were.
    """
    return to_canonical(determining(spec))


def to_canonical(content: dict[str, Any]) -> str:
    """JSON that is the same for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def determining(spec: RunSpec) -> dict[str, Any]:
    """The fields of a spec that its key is made of, nested."""
    content: dict[str, Any] = _plain(spec)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if not is_dataclass(value):
        return value
    return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if not is_left_out(value, f)}


def run_spec_from_dict(fields: dict[str, Any]) -> RunSpec:
    """Inverse of `canonical_json` after `json.loads`."""
    model = dict(fields["model"])
    config = config_class(model["arch"])
    return RunSpec(
        **{
            **fields,
            "model": config(**model),
            "data": DataSpec(**fields["data"]),
            "optimizer": OptimizerSpec(**fields["optimizer"]),
            "task": None if fields.get("task") is None else task_from_dict(fields["task"]),
        }
    )
