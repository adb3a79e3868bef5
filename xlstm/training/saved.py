"""A trained model as files that this package loads, and MLflow: `pyfunc.load_model("runs:/ID/model")`.

The folder holds MLflow's MLmodel file and `data/` with the run's spec and its weights. Nothing is pickled.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from xlstm.checkpoints import ours
from xlstm.checkpoints.ours import DATA, MODEL, SPEC, WEIGHTS
from xlstm.run_spec import RunSpec, canonical_json


def save_model(weights: Mapping[str, Tensor], spec: RunSpec, run_dir: Path) -> Path:
    """Write `run_dir/model`, a model with these weights; its path.

    MLflow's own writer would import pandas, which a training does without.
    """
    folder = run_dir / MODEL
    (folder / DATA).mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / DATA / WEIGHTS)
    (folder / DATA / SPEC).write_text(canonical_json(spec) + "\n", encoding="utf-8")
    flavor = {"loader_module": __name__, "data": DATA, "python_version": platform.python_version()}
    description = {
        "flavors": {"python_function": flavor},
        "mlflow_version": version("mlflow"),
        "metadata": {"run_key": spec.run_key, "arch": spec.model.arch},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(description), encoding="utf-8")
    return folder


def load_model(folder: Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a folder that `save_model` wrote, ready to evaluate; CheckpointError where it is none."""
    data = folder / DATA if (folder / DATA).is_dir() else folder
    model, _ = ours.read(data)
    return model.to(device)


class TokenScorer:
    """What MLflow calls: logits of the next token after each token of rows of one length."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Token ids (rows, T), a table or an array, to logits (rows, T, vocabulary)."""
        tokens = torch.from_numpy(np.asarray(model_input, dtype=np.int64))
        with torch.inference_mode():
            logits: Tensor = self.model(tokens)
        return logits.float().numpy()


def _load_pyfunc(path: str) -> TokenScorer:
    """MLflow's entry point, by name: `path` is the folder `data`."""
    return TokenScorer(load_model(Path(path)))
