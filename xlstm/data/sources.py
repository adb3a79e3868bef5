"""Documents, one at a time, from what a CorpusSpec names."""

import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xlstm.data.spec import CorpusError, CorpusSpec

MAX_SOURCE_BYTES = 512 * 1024
"""Python files above this are tables and generated bindings, not code that someone wrote."""

PARQUET_ROWS = 4096


class Document(NamedTuple):
    name: str
    """Path relative to its root, with the row for a file of many documents."""
    text: str


class Origin(NamedTuple):
    """A file, and the name under which the corpus knows it on every machine."""

    name: str
    path: Path


def documents(spec: CorpusSpec, skipped: Counter[str]) -> Iterator[Document]:
    """The documents of a source in an order that depends on the seed and on names only.

    Of installed Python files, those that cannot be used are counted in `skipped` by reason; a file that the
    user named must be readable, else CorpusError.
    """
    if spec.source == "python":
        yield from _python_documents(spec, skipped)
    elif spec.source == "files":
        for origin in _shuffled(_named_files(spec.paths), spec.seed):
            yield from _file_documents(origin, spec)
    else:
        yield from _hub_documents(spec)


def _shuffled(origins: list[Origin], seed: int) -> list[Origin]:
    """Sorted by a keyed hash of the name: a shuffle that does not depend on where the files lie."""
    return sorted(origins, key=lambda o: hashlib.sha256(f"{seed}:{o.name}".encode()).digest())


def python_roots() -> dict[str, Path]:
    """The folders of installed Python sources, by the name under which the corpus knows them."""
    paths = sysconfig.get_paths()
    roots = {"stdlib": paths["stdlib"], "site-packages": paths["purelib"], "platlib": paths["platlib"]}
    if roots["platlib"] == roots["site-packages"]:
        del roots["platlib"]
    return {name: Path(path) for name, path in roots.items()}


def _python_documents(spec: CorpusSpec, skipped: Counter[str]) -> Iterator[Document]:
    origins = [origin for name, root in python_roots().items() for origin in _python_files(name, root)]
    for origin in _shuffled(origins, spec.seed):
        try:
            if origin.path.stat().st_size > MAX_SOURCE_BYTES:
                skipped[f"larger than {MAX_SOURCE_BYTES} bytes"] += 1
                continue
            yield Document(origin.name, origin.path.read_bytes().decode())
        except OSError:
            skipped["unreadable"] += 1
        except UnicodeDecodeError:
            skipped["not UTF-8"] += 1


def _python_files(name: str, root: Path) -> Iterator[Origin]:
    for folder, folders, files in os.walk(root):
        # Packages below the standard library belong to another environment, or are a root themselves.
        folders[:] = [f for f in folders if f not in ("__pycache__", "site-packages", "dist-packages")]
        for file in files:
            # An editable install leaves a file that holds this machine's paths.
            if file.endswith(".py") and not file.startswith("__editable__"):
                path = Path(folder, file)
                yield Origin(f"{name}/{path.relative_to(root).as_posix()}", path)


def _named_files(paths: tuple[str, ...]) -> list[Origin]:
    origins = []
    for given in map(Path, paths):
        if given.is_dir():
            found = sorted(p for p in given.rglob("*") if p.is_file() and not _hidden(p.relative_to(given)))
            if not found:
                raise CorpusError(f"{given}: no files in this folder")
            origins += [Origin(f"{given.name}/{p.relative_to(given).as_posix()}", p) for p in found]
        elif given.exists():
            origins.append(Origin(given.name, given))
        else:
            raise CorpusError(f"{given}: no such file or folder (data.paths)")
    return origins


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_documents(origin: Origin, spec: CorpusSpec) -> Iterator[Document]:
    try:
        if origin.path.suffix == ".jsonl":
            yield from _jsonl_documents(origin, spec.text_field)
        elif origin.path.suffix == ".parquet":
            yield from _parquet_documents(origin, spec.text_field)
        else:
            yield from _text_documents(origin, spec.document_separator)
    except OSError as error:
        raise CorpusError(f"{origin.path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{origin.path}: not UTF-8 text at byte {error.start}; convert or remove it"
        ) from error


def _text_documents(origin: Origin, separator: str | None) -> Iterator[Document]:
    text = origin.path.read_bytes().decode()
    if separator is None:
        yield Document(origin.name, text)
        return
    for row, part in enumerate(text.split(separator)):
        yield Document(f"{origin.name}:{row}", part)


def _jsonl_documents(origin: Origin, field: str) -> Iterator[Document]:
    with origin.path.open("rb") as lines:
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except json.JSONDecodeError as error:
                raise CorpusError(f"{origin.path}:{row}: not JSON ({error.msg})") from error
            yield Document(f"{origin.name}:{row}", _text_of(record, field, f"{origin.path}:{row}"))


def _parquet_documents(origin: Origin, field: str) -> Iterator[Document]:
    import polars as pl

    try:
        table = pl.scan_parquet(origin.path)
        columns = table.collect_schema()
        if columns.get(field) != pl.String:
            raise CorpusError(
                f"{origin.path}: no text column {field!r}; it has {', '.join(columns)} (data.text_field)"
            )
        rows = table.select(pl.len()).collect().item()
        for start in range(0, rows, PARQUET_ROWS):
            texts = table.select(field).slice(start, PARQUET_ROWS).collect()[field]
            for row, text in enumerate(texts, start=start):
                yield Document(f"{origin.name}:{row}", text or "")
    except pl.exceptions.PolarsError as error:
        raise CorpusError(f"{origin.path}: not a Parquet file ({str(error).splitlines()[0]})") from error


def _hub_documents(spec: CorpusSpec) -> Iterator[Document]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise CorpusError(
            f"data set {spec.dataset!r}: the package `datasets` is missing;"
            " install the extra: pip install 'isoflop[hf]'"
        ) from error
    rows = datasets.load_dataset(spec.dataset, spec.dataset_config, split=spec.dataset_split, streaming=True)
    for row, record in enumerate(rows):
        name = f"{spec.dataset}:{row}"
        yield Document(name, _text_of(record, spec.text_field, name))


def _text_of(record: Any, field: str, where: str) -> str:
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise CorpusError(f"{where}: no text in field {field!r} (data.text_field)")
    return text
