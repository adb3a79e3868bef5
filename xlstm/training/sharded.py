"""Resume points of both forms, a file or a folder of shards, each read by any number of processes.

Whole: Lightning's own file, optimiser states by position. Sharded: a folder that every process writes its
part of (torch.distributed.checkpoint), optimiser states by parameter name, the rest in a small file beside
them. Positions follow the optimiser's groups and not the model: matrices that decay come before the rest.
"""

import pickle
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

OLD = ".old"
UNREADABLE = (RuntimeError, EOFError, KeyError, ValueError, OSError, pickle.UnpicklingError)
"""What torch raises for a file, or a folder of them, that is not whole."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes files; reads them, and folders of shards, each process the whole."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A checkpoint as Lightning's trainer without sharding knows it."""
        if not Path(path).is_dir():
            return super().load_checkpoint(path, *args, **kwargs)
        return assemble(Path(path))


def assemble(folder: Path) -> dict[str, Any]:
    """The checkpoint of a folder of shards as a whole one, in host memory."""
    parts: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()
    _load_state_dict(parts, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    whole = torch.load(folder / _METADATA_FILENAME, map_location="cpu", weights_only=True)
    whole["state_dict"] = parts["state_dict"]
    states = [parts[f"optimizer_{i}"] for i in range(sum(key.startswith("optimizer_") for key in parts))]
    whole["optimizer_states"] = [by_position(state) for state in states]
    return whole


def by_position(named: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict, from names of parameters to their positions in its groups."""
    names = [name for group in named["param_groups"] for name in group["params"]]
    position = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [position[n] for n in group["params"]]} for group in named["param_groups"]]
    return {"state": {position[n]: state for n, state in named["state"].items()}, "param_groups": groups}


def by_name(numbered: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Inverse of `by_position`; `names` in the order of the optimiser's groups."""
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in numbered["param_groups"]]
    return {"state": {names[i]: state for i, state in numbered["state"].items()}, "param_groups": groups}


def names_in_order(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of an optimiser's parameters, group by group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in groups for parameter in group["params"]]


def put_in_place(new: Path, path: Path) -> None:
    """Make `new`, a whole checkpoint of either form, the one at `path`; `latest` finds one at any instant."""
    if new.is_file() and not path.is_dir():
        new.replace(path)
        return
    old = path.with_suffix(OLD)
    if path.exists():
        remove(old)
        path.replace(old)
    new.replace(path)
    remove(old)


def latest(path: Path) -> Path | None:
    """The checkpoint at `path`, or its predecessor where a kill fell between the two; None: there is none."""
    return next((found for found in (path, path.with_suffix(OLD)) if found.exists()), None)


def remove(path: Path) -> None:
    """A checkpoint of either form, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_readable(path: Path) -> None:
    """Raise one of `UNREADABLE` where a checkpoint is not whole; its numbers are not looked at."""
    if not path.is_dir():
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return
    torch.load(path / _METADATA_FILENAME, map_location="cpu", weights_only=True)
    for item in FileSystemReader(path).read_metadata().storage_data.values():
        size, needed = (path / item.relative_path).stat().st_size, item.offset + item.length
        if size < needed:
            raise ValueError(f"{item.relative_path} has {size} bytes of {needed}")
