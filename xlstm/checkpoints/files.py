"""Safetensors and configurations on disk. No pickle is ever opened."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlstm.checkpoints.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or CheckpointError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds {type(found).__name__}, an object is due")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain values, or CheckpointError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"{path}: is no YAML ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds {type(found).__name__}, a mapping is due")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: one file, the shards that an index names, or `model_0`, `model_1` and so on.

    Raises:
        CheckpointError: no such file, a shard that is missing, cut off, or without a tensor that is due.
    """
    if (folder / SINGLE).is_file():
        return _read_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_index(folder)
    numbered = list(_numbered(folder))
    if numbered:
        weights: dict[str, Tensor] = {}
        for path in numbered:
            weights |= _read_file(path)
        return weights
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: is a pickle, which could run anything: convert it to {SINGLE}"
        )
    raise CheckpointError(f"{folder}: holds no weights: {SINGLE}, {INDEX} or model_0.safetensors is due")


def write_weights(
    weights: Mapping[str, Tensor], folder: Path, *, numbered: bool = False, shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors as one file, or as shards of at most `shard_bytes` with an index.

    `numbered` names shards as xlstm_large does, without an index.
    """
    shards = _shards(weights, shard_bytes)
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata=metadata)
        return
    places: dict[str, str] = {}
    for j, shard in enumerate(shards):
        name = f"model_{j}.safetensors" if numbered else f"model-{j + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata=metadata)
        places |= dict.fromkeys(shard, name)
    if not numbered:
        total = sum(tensor.nbytes for tensor in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, that takes its name when it is complete; nothing is there after an error.

    Raises:
        CheckpointError: the name is taken, or its parent cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: is there already: name a folder that is not, or an empty one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        filling = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror or error})") from error
    try:
        yield filling
        for path in filling.iterdir():
            path.chmod(0o644)  # safetensors writes files that their owner alone may read
        filling.chmod(0o755)
        os.replace(filling, folder)
    except BaseException:
        shutil.rmtree(filling, ignore_errors=True)
        raise


def _numbered(folder: Path) -> Iterator[Path]:
    number = 0
    while (path := folder / f"model_{number}.safetensors").is_file():
        yield path
        number += 1


def _read_index(folder: Path) -> dict[str, Tensor]:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / INDEX}: has no weight_map")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX}: weight_map names {name!r}, which is no file beside it")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        weights |= _read_file(folder / name)
    absent = sorted(set(places) - set(weights))
    if absent:
        raise CheckpointError(f"{folder / places[absent[0]]}: has no {absent[0]}, which {INDEX} says it has")
    return weights


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is not there") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: is cut off, or no safetensors file ({error})") from error


def _shards(weights: Mapping[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().contiguous()
        size += tensor.nbytes
    return shards
