"""What a training leaves (`xlstm.training.saved`): the run's spec and a torch file of tensors."""

import pickle
from pathlib import Path

import torch

from xlstm.checkpoints.errors import CheckpointError
from xlstm.checkpoints.files import read_json
from xlstm.checkpoints.weights import model_of
from xlstm.models import LanguageModel
from xlstm.run_spec import RunSpec, run_spec_from_dict

MODEL, DATA, SPEC, WEIGHTS = "model", "data", "spec.json", "model.pt"


def find(folder: Path) -> Path | None:
    """The folder with spec and weights: this one, or the one of a run or of an MLflow model."""
    for candidate in (folder, folder / DATA, folder / MODEL / DATA):
        if (candidate / SPEC).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    return None


def why_not(folder: Path) -> str:
    """What to do about a folder that holds no model."""
    if (folder / SPEC).is_file():
        return "this run kept no model: resources.keep_final_checkpoint: true in a sweep keeps them"
    return "holds no model: config.json, config.yaml or the model of a run is due"


def read(folder: Path, dtype: torch.dtype | None = None) -> tuple[LanguageModel, RunSpec]:
    """The model of a folder that `find` found, and its training."""
    fields = read_json(folder / SPEC)
    try:
        spec = run_spec_from_dict(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / SPEC}: is no run of this version ({error!r})") from error
    path = folder / WEIGHTS
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: is cut off, or holds more than tensors ({reason})") from error
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise CheckpointError(f"{path}: holds no weights")
    return model_of(spec.model, weights, str(path), dtype), spec
