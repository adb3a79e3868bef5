"""Models by the name that a user gives: a run of this state folder, or a folder with a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch

from tasks.errors import UserError
from tasks.state import State
from xlstm.checkpoints import CheckpointError, load_checkpoint
from xlstm.checkpoints.files import read_json
from xlstm.data import Corpus, CorpusError, load_corpus
from xlstm.data.tokenizers import TOKENIZER_FILE, Tokenizer, file_tokenizer, saved_tokenizer

if TYPE_CHECKING:
    from xlstm.checkpoints.load import Loaded

SHORTEST_KEY = 4
"""Characters of a run key that name a run."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Found:
    """A model, where it lies, and how it reads text; None where nothing says how."""

    loaded: "Loaded"
    folder: Path
    tokenizer: Tokenizer | None
    corpus: Corpus | None = None
    """What it was trained on, where that is still prepared."""

    @property
    def context_length(self) -> int | None:
        return self.loaded.context_length


def find_folder(name: str, state: State) -> Path:
    """A folder by its path, or that of a run by its key, the first characters of its key, or its name.

    Raises:
        UserError: nothing of that name, or more than one.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise UserError(f"{name}: is a file: name the folder that it lies in")
    runs = state.home / "runs"
    keys = [key for key, run_name in _names(state) if run_name == name]
    if len(name) >= SHORTEST_KEY:
        keys += [folder.name for folder in runs.iterdir() if folder.name.startswith(name)]
    found = sorted(set(keys))
    if len(found) > 1:
        some = ", ".join(key[:12] for key in found[:4])
        raise UserError(f"{name}: names {len(found)} runs: say which by its key ({some}, ...)")
    if not found or not (runs / found[0]).is_dir():
        raise UserError(f"{name}: is no folder, and no run in {runs}: give a path, a run's name or its key")
    return runs / found[0]


def open_model(
    name: str, state: State, *, dtype: torch.dtype | None = None, tokenizer: str | None = None
) -> Found:
    """The model of that name, on the CPU, and its tokenizer: the file given, or the one it was trained with.

    Raises:
        UserError: no such model, or one that cannot be read.
    """
    folder = find_folder(name, state)
    try:
        loaded = load_checkpoint(folder, dtype)
        corpus = _corpus(loaded, state)
        found = Found(loaded, folder, _tokenizer(loaded, folder, corpus, tokenizer), corpus)
    except (CheckpointError, CorpusError) as error:
        raise UserError(str(error)) from error
    size = loaded.model.config.vocab_size
    if found.tokenizer is not None and found.tokenizer.vocab_size > size:
        raise UserError(
            f"{tokenizer or folder}: the tokenizer has {found.tokenizer.vocab_size} tokens and the model"
            f" {size}: it was trained with another one"
        )
    return found


def dtype_named(name: str, option: str) -> torch.dtype:
    """The dtype that a user gives with an option; UserError where it is none of ours."""
    if name not in DTYPES:
        raise UserError(f"{option} {name}: must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _corpus(loaded: "Loaded", state: State) -> Corpus | None:
    """The prepared corpus with the content that a model was trained on."""
    if loaded.spec is None:
        return None
    for meta in state.data.glob("*/meta.json"):
        try:
            corpus = load_corpus(meta.parent)
        except CorpusError:
            continue  # half prepared, or of another version: not the one that this model read
        if corpus.meta.content_hash == loaded.spec.data.content_hash:
            return corpus
    return None


def _tokenizer(loaded: "Loaded", folder: Path, corpus: Corpus | None, path: str | None) -> Tokenizer | None:
    if path == "bytes":
        return saved_tokenizer(folder, "bytes", 0)
    if path is not None:
        return file_tokenizer(Path(path))
    if loaded.spec is None:
        beside = folder / TOKENIZER_FILE
        return file_tokenizer(beside, _separator(folder)) if beside.is_file() else None
    if corpus is not None:
        return saved_tokenizer(corpus.folder, corpus.meta.tokenizer, corpus.meta.separator)
    return saved_tokenizer(folder, "bytes", 0) if loaded.spec.data.tokenizer == "bytes" else None


def _separator(folder: Path) -> int | str | None:
    """The token at which a published model ends a text, by its id or its name."""
    for name, key in (
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ):
        fields: dict[str, Any] = read_json(folder / name) if (folder / name).is_file() else {}
        if isinstance(fields.get(key), int | str):
            return fields[key]
    return None


def _names(state: State) -> list[tuple[str, str]]:
    """Key and name of every run that a sweep of this state folder planned."""
    pairs: list[tuple[str, str]] = []
    for plan in sorted((state.home / "sweeps").glob("*/plan.parquet")):
        pairs += pl.read_parquet(plan, columns=["run_key", "run_name"]).rows()
    return pairs
