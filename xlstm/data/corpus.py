"""A tokenised corpus on disk: two memory-mapped token files and what is known about them."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.data.spec import UNNAMED, CorpusError
from xlstm.run_spec import DataSpec

META = "meta.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SplitMeta:
    """One split: a file of token ids without a header."""

    documents: int
    bytes: int
    """Text in UTF-8, separators not counted."""
    tokens: int
    """Separators counted: one ends each document."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CorpusMeta:
    """What `meta.json` holds."""

    name: str
    """The spec's `label`."""
    tokenizer: str
    tokenizer_digest: str
    vocab_size: int
    separator: int
    dtype: str
    train: SplitMeta
    validation: SplitMeta
    unigram_entropy: float
    """Cross-entropy of the train split's unigram model (add-one) on the validation split, nats per token."""
    source: dict[str, Any]
    """The CorpusSpec."""
    skipped: dict[str, int]
    """Documents left out, by reason."""
    created_at: str
    format_version: int = FORMAT_VERSION

    @property
    def key_name(self) -> str:
        """What run keys hold of the name: see CorpusSpec.key_name."""
        return self.source.get("name") or UNNAMED

    @property
    def bytes_per_token(self) -> float:
        """Of the validation split: turns nats per token into bits per byte of text."""
        return self.validation.bytes / self.validation.tokens

    @property
    def content_hash(self) -> str:
        """SHA-256 over both token files and what gives their numbers a meaning; no path, date or name."""
        content = {
            "dtype": self.dtype,
            "separator": self.separator,
            "tokenizer": self.tokenizer_digest,
            "train": self.train.sha256,
            "validation": self.validation.sha256,
            "vocab_size": self.vocab_size,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> str:
        derived = {"bytes_per_token": self.bytes_per_token, "content_hash": self.content_hash}
        return json.dumps(asdict(self) | derived, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. `train` and `validation` are read-only memory maps, shape (tokens,)."""

    folder: Path
    meta: CorpusMeta

    def spec(self) -> DataSpec:
        """What a RunSpec says about its data."""
        return DataSpec(
            name=self.meta.key_name, tokenizer=self.meta.tokenizer, content_hash=self.meta.content_hash
        )

    @cached_property
    def train(self) -> np.ndarray:
        return self._tokens("train")

    @cached_property
    def validation(self) -> np.ndarray:
        return self._tokens("validation")

    def bits_per_byte(self, loss: float) -> float:
        """From the validation loss in nats per token.

        The separators' loss is counted and their bytes are not, for they are no text.
        """
        return loss / math.log(2) / self.meta.bytes_per_token

    def verify(self) -> None:
        """Read both token files and compare their hashes with `meta.json`; CorpusError if they differ."""
        for split in ("train", "validation"):
            with token_file(self.folder, split).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != getattr(self.meta, split).sha256:
                raise CorpusError(
                    f"{token_file(self.folder, split)}: content has changed; prepare the corpus again"
                )

    def _tokens(self, split: str) -> np.ndarray:
        return np.memmap(token_file(self.folder, split), dtype=self.meta.dtype, mode="r")


def token_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest unsigned integer that holds every token."""
    for dtype in (np.uint8, np.uint16, np.uint32):
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise CorpusError(f"a vocabulary of {vocab_size} does not fit 32 bits")


def load_corpus(folder: Path) -> Corpus:
    """Open a prepared corpus; reads `meta.json` and file sizes only. CorpusError where it is not whole."""
    try:
        fields = json.loads((folder / META).read_text())
    except FileNotFoundError as error:
        raise CorpusError(f"{folder}: no prepared corpus here (no {META})") from error
    except (OSError, ValueError) as error:
        raise CorpusError(f"{folder / META}: cannot be read: {error}") from error
    if fields.get("format_version") != FORMAT_VERSION:
        raise CorpusError(
            f"{folder}: corpus format {fields.get('format_version')}, this version reads {FORMAT_VERSION};"
            " prepare it again"
        )
    meta = _meta_from_json(fields)
    for split in ("train", "validation"):
        _check_size(token_file(folder, split), getattr(meta, split).tokens * np.dtype(meta.dtype).itemsize)
    return Corpus(folder, meta)


def _meta_from_json(fields: dict[str, Any]) -> CorpusMeta:
    fields = {k: v for k, v in fields.items() if k not in ("bytes_per_token", "content_hash")}
    splits = {split: SplitMeta(**fields[split]) for split in ("train", "validation")}
    return CorpusMeta(**(fields | splits))


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise CorpusError(f"{path}: {size} bytes where {expected} are due; prepare the corpus again")
