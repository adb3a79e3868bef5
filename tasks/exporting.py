"""A trained model in an official layout, to publish or to load elsewhere."""

import json
from pathlib import Path

from tasks.errors import UserError
from tasks.models import Found, dtype_named, open_model
from tasks.state import State
from xlstm.accounting import count_parameters
from xlstm.checkpoints import CheckpointError, save_checkpoint
from xlstm.data.spec import UNNAMED
from xlstm.data.tokenizers import TOKENIZER_FILE, Tokenizer
from xlstm.run_spec import DataSpec


def export_model(
    name: str,
    folder: Path,
    state: State,
    *,
    layout: str,
    weight_mode: str = "single",
    dtype: str | None = None,
    tokenizer: str | None = None,
) -> Found:
    """Write the model of that name to a new folder, with its tokenizer and a card that says where it is from.

    Raises:
        UserError: no such model, a layout that it does not have, or a folder that is taken.
    """
    chosen = None if dtype is None else dtype_named(dtype, "--dtype")
    found = open_model(name, state, dtype=chosen, tokenizer=tokenizer)
    separator = None if found.tokenizer is None else found.tokenizer.separator
    try:
        save_checkpoint(
            found.loaded.model,
            folder,
            layout,
            weight_mode=weight_mode,  # type: ignore[arg-type]  # a user's word, checked there
            context_length=found.context_length or 2048,
            separator=separator,
            extra_files=_files(found),
        )
    except CheckpointError as error:
        raise UserError(str(error)) from error
    return found


def _files(found: Found) -> dict[str, str]:
    files = {"README.md": _card(found)}
    return files if found.tokenizer is None else files | tokenizer_files(found.tokenizer)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """What AutoTokenizer reads, by file name."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    text = tokenizer.to_json()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": HuggingFaceTokenizer.from_str(text).id_to_token(tokenizer.separator),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    return {TOKENIZER_FILE: text, "tokenizer_config.json": json.dumps(config, indent=1) + "\n"}


def _card(found: Found) -> str:
    """README.md: what the model is, of which training."""
    config, spec = found.loaded.model.config, found.loaded.spec
    lines = [
        f"# {config.arch}, {count_parameters(config):,} parameters",
        "",
        f"{config.num_blocks} blocks of width {config.d_model}, vocabulary {config.vocab_size}.",
    ]
    if spec is not None:
        lines += [
            "",
            f"Trained by Isoflop on {spec.tokens:,} tokens{_named(found, spec.data)} (tokenizer"
            f" {spec.data.tokenizer}, content {spec.data.content_hash[:12]}), context length"
            f" {spec.context_length}, seed {spec.seed}.",
            f"Run key: `{spec.run_key}`.",
        ]
    return "\n".join(lines) + "\n"


def _named(found: Found, data: DataSpec) -> str:
    """What the text is called; nothing where it was given no name and lies here no more."""
    if found.corpus is not None:
        return f" of `{found.corpus.meta.name}`"
    return "" if data.name == UNNAMED else f" of `{data.name}`"
