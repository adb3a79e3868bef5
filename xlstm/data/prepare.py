"""Prepare a corpus: read, de-duplicate, split, tokenise and hash in one pass, then rename into place.

A corpus is a snapshot. Once it lies in its folder it is used as it is until someone asks to refresh it, so
that a package installed later does not change the data of runs that are already cached.
"""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from xlstm.data.corpus import META, Corpus, CorpusMeta, SplitMeta, load_corpus, token_dtype, token_file
from xlstm.data.sources import Document, documents
from xlstm.data.spec import CorpusError, CorpusSpec
from xlstm.data.tokenizers import BytesTokenizer, Tokenizer, open_tokenizer, train_bpe

BATCH_BYTES = 4 * 2**20
BPE_SAMPLE_BYTES = 32 * 2**20


def prepare_corpus(source: CorpusSpec, folder: Path, *, refresh: bool = False) -> Corpus:
    """The corpus in `folder`, prepared there first if it is not.

    Safe against other processes that prepare the same folder. CorpusError when the text cannot be read or is
    too little, and when `folder` holds a corpus that was prepared from another spec.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if (folder / META).exists() and not refresh:
            corpus = load_corpus(folder)
            _require_same_source(corpus, source)
            return corpus
        unfinished = folder.parent / f".{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _write_corpus(source, unfinished)
        _replace(folder, unfinished)
    return load_corpus(folder)


def _require_same_source(corpus: Corpus, source: CorpusSpec) -> None:
    asked, held = json.loads(json.dumps(asdict(source))), corpus.meta.source
    changed = [key for key in asked if key != "name" and asked[key] != held.get(key)]
    changed += ["name"] if source.key_name != corpus.meta.key_name else []
    if changed:
        key = changed[0]
        raise CorpusError(
            f"{corpus.folder}: was prepared with data.{key} = {held.get(key)!r}, now"
            f" {asked[key]!r} is asked for: give this corpus a data.name other than {source.label!r}"
        )


def _replace(folder: Path, prepared: Path) -> None:
    """Swap the folders; open memory maps of the old corpus stay valid until they are closed."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    prepared.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class Placed(NamedTuple):
    """A document that is in the corpus, and where."""

    document: Document
    split: str
    digest: str


def _placed(source: CorpusSpec, skipped: Counter[str]) -> Iterator[Placed]:
    """Documents that are kept, each content once, dealt to the splits.

    Every k-th goes to validation, k = 1 / validation_fraction, the first one included; as no content comes
    twice, none is in both splits.
    """
    every = round(1 / source.validation_fraction)
    seen: set[bytes] = set()
    size = 0
    for document in documents(source, skipped):
        content = document.text.encode()
        digest = hashlib.sha256(content).digest()
        if not document.text.strip():
            skipped["empty"] += 1
        elif b"\0" in content:
            skipped["contains NUL, the separator"] += 1
        elif digest in seen:
            skipped["duplicate"] += 1
        elif source.max_bytes is not None and size + len(content) > source.max_bytes:
            return
        else:
            split = "train" if len(seen) % every else "validation"
            seen.add(digest)
            size += len(content)
            yield Placed(document, split, digest.hex())


def _write_corpus(source: CorpusSpec, folder: Path) -> None:
    skipped: Counter[str] = Counter()
    tokenizer, placed = _tokenizer(source, _placed(source, skipped))
    dtype = token_dtype(tokenizer.vocab_size)
    writers = {split: _SplitWriter(folder, split, dtype, tokenizer) for split in ("train", "validation")}
    with (folder / "documents.jsonl").open("w") as listing:
        for batch in _batches(placed):
            for item, tokens in zip(batch, tokenizer.encode([p.document.text for p in batch]), strict=True):
                writers[item.split].add(item.document.text, tokens)
                listing.write(
                    json.dumps({"name": item.document.name, "split": item.split, "sha256": item.digest})
                    + "\n"
                )
    splits = {split: writer.finish() for split, writer in writers.items()}
    for split, counted in splits.items():
        if not counted.documents:
            raise CorpusError(_nothing_in(split, source, skipped))
    tokenizer.save(folder)
    meta = CorpusMeta(
        name=source.label,
        tokenizer=source.tokenizer_label,
        tokenizer_digest=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        separator=tokenizer.separator,
        dtype=dtype.name,
        train=splits["train"],
        validation=splits["validation"],
        unigram_entropy=unigram_cross_entropy(writers["train"].counts, writers["validation"].counts),
        source=asdict(source),
        skipped=dict(skipped),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    (folder / META).write_text(meta.to_json())


def _nothing_in(split: str, source: CorpusSpec, skipped: Counter[str]) -> str:
    where = ", ".join(source.paths) or source.dataset or "installed Python sources"
    if split == "train" and sum(skipped.values()) == 0 and source.max_bytes is None:
        return (
            f"{where}: one document cannot be split; give more files, or data.document_separator to cut it at"
        )
    left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "none"
    bound = "" if source.max_bytes is None else f", data.max_bytes = {source.max_bytes}"
    return f"{where}: no text for the {split} split (documents left out: {left_out}{bound})"


def _tokenizer(source: CorpusSpec, placed: Iterator[Placed]) -> tuple[Tokenizer, Iterable[Placed]]:
    """The tokenizer, and the documents again: training a BPE looks at the first of them."""
    if source.tokenizer == "bytes":
        return BytesTokenizer(), placed
    if not source.tokenizer.startswith("bpe:"):
        return open_tokenizer(source.tokenizer, source.separator_token), placed
    head: list[Placed] = []
    size = 0
    for item in placed:
        head.append(item)
        size += len(item.document.text)
        if size >= BPE_SAMPLE_BYTES:
            break
    sample = [p.document.text for p in head if p.split == "train"]
    return train_bpe(sample, source.bpe_vocab_size), chain(head, placed)


def _batches(placed: Iterable[Placed]) -> Iterator[list[Placed]]:
    batch: list[Placed] = []
    size = 0
    for item in placed:
        batch.append(item)
        size += len(item.document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _SplitWriter:
    """Appends documents to a token file, and counts and hashes what it writes."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, tokenizer: Tokenizer) -> None:
        self._file = token_file(folder, split).open("wb")
        self._hash = hashlib.sha256()
        self._dtype = dtype
        self._separator = np.array([tokenizer.separator], dtype)
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self._documents = self._bytes = 0

    def add(self, text: str, tokens: np.ndarray) -> None:
        ended = np.concatenate([tokens.astype(self._dtype, copy=False), self._separator])
        data = ended.astype(self._dtype.newbyteorder("<"), copy=False).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.counts += np.bincount(ended, minlength=len(self.counts))
        self._documents += 1
        self._bytes += len(text.encode())

    def finish(self) -> SplitMeta:
        self._file.close()
        return SplitMeta(
            documents=self._documents,
            bytes=self._bytes,
            tokens=int(self.counts.sum()),
            sha256=self._hash.hexdigest(),
        )


def unigram_cross_entropy(train: np.ndarray, validation: np.ndarray) -> float:
    """Nats per token of the validation counts under the train counts' unigram model.

    Counts have shape (vocabulary,). Add-one smoothing, so that a token that training never saw costs a finite
    amount.
    """
    log_p = np.log(train + 1.0) - math.log(train.sum() + len(train))
    return float(-(validation @ log_p) / validation.sum())
