"""What runs of the schedule `wsd` share: the path from step 0 to their cool-downs. Light: no torch here.

Up to its cool-down such a run depends on neither its length nor its cool-down, so runs of one model, batch
and seed are the same training for as long as none of them cools down: a trunk, from which each branches.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm.run_spec import RunSpec, determining, to_canonical

_OF_THE_BRANCH = ("steps", "validation_tokens", "validation_every")
_OF_THE_COOLDOWN = ("cooldown_steps", "cosine_floor")


def has_trunk(spec: RunSpec) -> bool:
    """Whether others may share the first part of a run."""
    return spec.optimizer.schedule == "wsd"


def branch_step(spec: RunSpec) -> int:
    """Updates of the trunk: the cool-down begins with the next."""
    return spec.steps - spec.optimizer.cooldown_steps


def trunk_key(spec: RunSpec) -> str:
    """SHA-256 of all that determines the trunk of a run: the same key means the same path."""
    content: dict[str, Any] = {k: v for k, v in determining(spec).items() if k not in _OF_THE_BRANCH}
    content["optimizer"] = {k: v for k, v in content["optimizer"].items() if k not in _OF_THE_COOLDOWN}
    return hashlib.sha256(to_canonical({"trunk": content}).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrunkJob:
    """Where a training finds its trunk, and what it leaves there for others."""

    folder: Path
    leave_at: tuple[int, ...] = ()
    """Steps after which others branch: whoever passes one first leaves a checkpoint."""

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "TrunkJob":
        return cls(folder=Path(fields["folder"]), leave_at=tuple(fields["leave_at"]))
