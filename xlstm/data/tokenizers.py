"""Tokenizers: bytes, a Hugging Face `tokenizers` file, and a BPE trained on the corpus."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xlstm.data.spec import CorpusError

TOKENIZER_FILE = "tokenizer.json"
USUAL_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer(Protocol):
    """Text to token ids."""

    vocab_size: int
    separator: int
    """The token that ends a document."""
    digest: str
    """Names the mapping from text to tokens by content."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, without separators; int arrays."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; what is no text becomes U+FFFD, as half a character at the end."""
        ...

    def to_json(self) -> str:
        """The same mapping as a `tokenizers` JSON file."""
        ...

    def save(self, folder: Path) -> None:
        """Put what is needed to decode into the corpus folder."""
        ...


class BytesTokenizer:
    """UTF-8 bytes; the NUL byte, which text does not contain, ends a document."""

    vocab_size = 256
    separator = 0
    digest = "bytes"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def to_json(self) -> str:
        """A byte-level BPE without merges: the 256 characters that stand for bytes, each by its number."""
        from tokenizers import Tokenizer as HuggingFaceTokenizer
        from tokenizers import decoders, models, pre_tokenizers

        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        tokenizer = HuggingFaceTokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer.to_str()

    def save(self, folder: Path) -> None:
        """Nothing to save: bytes decode themselves."""


class FileTokenizer:
    """A `tokenizers.Tokenizer` with one of its tokens as the end of a document."""

    def __init__(self, tokenizer: Any, separator_token: str | None = None, origin: str = "tokenizer") -> None:
        names = (separator_token,) if separator_token else USUAL_SEPARATORS
        ids = [i for i in map(tokenizer.token_to_id, names) if i is not None]
        if not ids:
            raise CorpusError(
                f"{origin}: has none of the tokens {', '.join(names)}; name one in data.separator_token"
            )
        self._tokenizer = tokenizer
        self._json = tokenizer.to_str()
        self.separator = ids[0]
        # Ids may have gaps, so the highest id and not the count says how many rows an embedding needs.
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.digest = hashlib.sha256(self._json.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.uint32) for e in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def to_json(self) -> str:
        return self._json

    def save(self, folder: Path) -> None:
        (folder / TOKENIZER_FILE).write_text(self._json)


def saved_tokenizer(folder: Path, label: str, separator: int) -> Tokenizer:
    """The tokenizer of a prepared corpus: its folder, what its `meta.json` calls it, the separator's id."""
    if label == BytesTokenizer.digest:
        return BytesTokenizer()
    return file_tokenizer(folder / TOKENIZER_FILE, separator)


def file_tokenizer(path: Path, separator: int | str | None = None) -> FileTokenizer:
    """A `tokenizers` JSON file, the token `separator`, or that of this id, at the end of documents.

    CorpusError where it is none.
    """
    tokenizer = _read_tokenizer(path)
    name = tokenizer.id_to_token(separator) if isinstance(separator, int) else separator
    return FileTokenizer(tokenizer, name, str(path))


def open_tokenizer(path: str, separator_token: str | None) -> FileTokenizer:
    """Read a `tokenizers` JSON file, or CorpusError."""
    if not Path(path).is_file():
        raise CorpusError(
            f"data.tokenizer = {path!r}: write bytes, bpe:<size> or the path of a tokenizers JSON file"
        )
    return FileTokenizer(_read_tokenizer(Path(path)), separator_token, origin=path)


def train_bpe(texts: Sequence[str], vocab_size: int) -> FileTokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens, or CorpusError when the text is too small for it."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[USUAL_SEPARATORS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise CorpusError(
            f"data.tokenizer = 'bpe:{vocab_size}': the text yields only {found} tokens; ask for fewer"
        )
    return FileTokenizer(tokenizer)


def _read_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    try:
        return HuggingFaceTokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise CorpusError(f"{path}: not a tokenizers file ({error})") from error


def _byte_characters() -> list[str]:
    """What byte-level tokenizers show for a byte: itself where it can be seen, else a character from 256."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
