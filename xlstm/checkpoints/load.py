"""Any checkpoint that we know, told apart by the files in its folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from xlstm.checkpoints import hf_llama, hf_xlstm, ours, xlstm_large
from xlstm.checkpoints.errors import CheckpointError
from xlstm.checkpoints.fields import Fields
from xlstm.checkpoints.files import read_json, read_weights, read_yaml
from xlstm.checkpoints.weights import model_of
from xlstm.models import LanguageModel
from xlstm.run_spec import RunSpec

CONFIG_JSON, CONFIG_YAML = "config.json", "config.yaml"


@dataclass(frozen=True)
class Loaded:
    """A model and what is known of it."""

    model: LanguageModel
    layout: str
    """isoflop, hf or xlstm_large."""
    spec: RunSpec | None
    """The training of a model of ours."""
    context_length: int | None
    """That it was trained on, where the checkpoint says it."""


def loadable(folder: Path) -> bool:
    """Whether the folder looks like a checkpoint of any kind."""
    return ours.find(folder) is not None or any((folder / n).is_file() for n in (CONFIG_JSON, CONFIG_YAML))


def load_checkpoint(folder: Path, dtype: torch.dtype | None = None) -> Loaded:
    """The model of a folder, on the CPU, in `dtype`, or in the one that it was written in.

    Ours (a run's folder, its `model`, or what MLflow keeps of it), Hugging Face's xLSTM and Llama, and
    xlstm_large. Weights are safetensors, and in our own layout a torch file of which nothing but tensors is
    read.

    Raises:
        CheckpointError: another architecture, an option that our model does not have, keys that are missing
            or too many, a shape or dtype that does not fit, a file that is cut off.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder: give a run, or a folder with a model")
    if (data := ours.find(folder)) is not None:
        model, spec = ours.read(data, dtype)
        return Loaded(model, "isoflop", spec, spec.context_length)
    if (folder / CONFIG_JSON).is_file():
        return _hugging_face(folder, dtype)
    if (folder / CONFIG_YAML).is_file():
        fields = Fields(read_yaml(folder / CONFIG_YAML), str(folder / CONFIG_YAML))
        config, weights = xlstm_large.read(fields, read_weights(folder))
        return Loaded(model_of(config, weights, str(folder), dtype), "xlstm_large", None, None)
    raise CheckpointError(f"{folder}: {ours.why_not(folder)}")


def _hugging_face(folder: Path, dtype: torch.dtype | None) -> Loaded:
    fields = Fields(read_json(folder / CONFIG_JSON), str(folder / CONFIG_JSON))
    kind = fields.values.get("model_type")
    if kind == hf_xlstm.MODEL_TYPE:
        found, weights = hf_xlstm.read(fields, read_weights(folder))
        return Loaded(model_of(found, weights, str(folder), dtype), "hf", None, None)
    if kind == hf_llama.MODEL_TYPE:
        config, weights = hf_llama.read(fields, read_weights(folder))
        context = fields.whole("max_position_embeddings", default=2048)
        return Loaded(model_of(config, weights, str(folder), dtype), "hf", None, context)
    raise CheckpointError(f"{fields.source}: model_type = {kind!r}: xlstm and llama can be read")
