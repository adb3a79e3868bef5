"""A model in one of the official layouts."""

import json
from pathlib import Path
from typing import Any

import yaml

from xlstm.checkpoints import hf_llama, hf_xlstm, xlstm_large
from xlstm.checkpoints.errors import CheckpointError
from xlstm.checkpoints.files import MAX_SHARD_BYTES, new_folder, write_weights
from xlstm.checkpoints.hf_xlstm import WeightMode
from xlstm.checkpoints.load import CONFIG_JSON, CONFIG_YAML
from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.models import LanguageModel

FORMATS = ("hf", "xlstm_large")


def save_checkpoint(
    model: LanguageModel,
    folder: Path,
    layout: str,
    *,
    weight_mode: WeightMode = "single",
    context_length: int = 2048,
    separator: int | None = None,
    extra_files: dict[str, str] | None = None,
    shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write configuration and safetensors; the folder is there when all of it is.

    `separator` is the token that ends a document, for generation to stop at. `extra_files` (name: text) join
    them, as a tokenizer. `context_length` is what a Llama's configuration says of itself.

    Raises:
        CheckpointError: a layout that this architecture does not have, or a folder that is taken.
    """
    config, weights = model.config, model.state_dict()
    if layout not in FORMATS:
        raise CheckpointError(f"format {layout!r}: must be one of {', '.join(FORMATS)}")
    if weight_mode not in ("single", "fused"):
        raise CheckpointError(f"weight mode {weight_mode!r}: must be single or fused")
    if weight_mode == "fused" and not (layout == "hf" and isinstance(config, MLSTMConfig)):
        raise CheckpointError("weight mode fused: only Hugging Face's xLSTM has it")
    fields: dict[str, Any]
    if isinstance(config, MLSTMConfig) and layout == "xlstm_large":
        fields, weights = xlstm_large.write(config, weights)
    elif isinstance(config, MLSTMConfig):
        fields, weights = hf_xlstm.write(config, weights, weight_mode)
    elif isinstance(config, TransformerConfig) and layout == "hf":
        fields, weights = hf_llama.write(config, weights, context_length)
    else:
        raise CheckpointError(f"architecture {config.arch}: has no layout {layout}")
    with new_folder(folder) as filling:
        write_weights(weights, filling, numbered=layout == "xlstm_large", shard_bytes=shard_bytes)
        if layout == "xlstm_large":
            (filling / CONFIG_YAML).write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
        else:
            tokens = {"bos_token_id": None, "eos_token_id": separator, "pad_token_id": None}
            dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
            _write_json(filling / CONFIG_JSON, fields | tokens | {"dtype": dtype, "torch_dtype": dtype})
            cache = {"use_cache": fields["use_cache"]}
            _write_json(filling / "generation_config.json", tokens | cache)
        for name, text in (extra_files or {}).items():
            (filling / name).write_text(text, encoding="utf-8")


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")
