"""CorpusSpec: which text, which tokenizer, which split."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNNAMED = "python"
"""What run keys call a corpus that was given no name, whatever its text: its content hash tells it apart, and
a name that follows from a path is for people, as paths are no part of a key."""


class CorpusError(ValueError):
    """A corpus that cannot be prepared or read; one line that names the culprit and the cure."""


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """A corpus by its origin. The same spec on the same text gives the same tokens."""

    name: str | None = None
    """None: see `label`. Part of the run keys where it is given."""
    source: Literal["python", "files", "huggingface"] = "python"
    """`python`: the sources of the running interpreter's standard library and site-packages."""
    paths: tuple[str, ...] = ()
    """For `files`: text, JSONL (.jsonl) or Parquet (.parquet) files, or folders of them."""
    dataset: str | None = None
    """For `huggingface`: the data set's name on the hub."""
    dataset_config: str | None = None
    dataset_split: str = "train"
    text_field: str = "text"
    """The field of JSONL, Parquet and Hugging Face rows that holds the text."""
    document_separator: str | None = None
    """Cuts a text file into documents, for a corpus that is one large file."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe:<vocabulary size>` (trained on this corpus) or the path of a `tokenizers` JSON file."""
    separator_token: str | None = None
    """The token of a tokenizer file that ends a document, if it is not one of the usual names."""
    max_bytes: int | None = None
    """Stop before the document that would exceed this much text, both splits together."""
    validation_fraction: float = 0.05
    seed: int = 0
    """Orders the files, and so decides which of them a bounded corpus and each split hold."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise CorpusError(f"data.name = {self.name!r}: letters, digits, '.', '_' and '-' only")
        if not 0 < self.validation_fraction <= 0.5:
            raise CorpusError(f"data.validation_fraction = {self.validation_fraction}: must lie in (0, 0.5]")
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise CorpusError(f"data.max_bytes = {self.max_bytes}: must be positive")
        if self.source == "files" and not self.paths:
            raise CorpusError("data.paths is empty: name the files or folders of the corpus")
        if self.source == "huggingface" and not self.dataset:
            raise CorpusError("data.dataset is empty: name a Hugging Face data set")
        if self.document_separator == "":
            raise CorpusError("data.document_separator is empty: leave it out, or give a string to cut at")
        if self.tokenizer.startswith("bpe:") and self.bpe_vocab_size < 257:
            raise CorpusError(
                f"data.tokenizer = {self.tokenizer!r}: 256 bytes and a separator need 257 tokens"
            )

    @property
    def bpe_vocab_size(self) -> int:
        """The vocabulary of a `bpe:<size>` tokenizer."""
        size = self.tokenizer.removeprefix("bpe:")
        if not size.isdecimal():
            raise CorpusError(
                f"data.tokenizer = {self.tokenizer!r}: write bpe:<vocabulary size>, as bpe:4096"
            )
        return int(size)

    @property
    def tokenizer_label(self) -> str:
        """A short name of the tokenizer: `bytes`, `bpe-4096`, or the stem of its file."""
        if self.tokenizer == "bytes":
            return "bytes"
        if self.tokenizer.startswith("bpe:"):
            return f"bpe-{self.bpe_vocab_size}"
        path = Path(self.tokenizer)
        return path.parent.name if path.stem == "tokenizer" and path.parent.name else path.stem

    @property
    def label(self) -> str:
        """What people read: `name`, or what the text itself is called. `python` for the built-in corpus, the
        stem of the first of `paths`, the last part of the data set's name."""
        if self.name is not None:
            return self.name
        if self.source == "python":
            return "python"
        if self.source == "files":
            called = re.sub(r"\.[A-Za-z]\w*$", "", os.path.basename(os.path.abspath(self.paths[0])))
        else:
            called = (self.dataset or "").rpartition("/")[2]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", called).strip("._-") or self.source

    @property
    def key_name(self) -> str:
        """What run keys hold of the name."""
        return self.name or UNNAMED

    @property
    def folder_name(self) -> str:
        """Where the corpus lies below the state folder's `data/`."""
        return f"{self.label}-{self.tokenizer_label}"
