"""Domains of real text that every installation holds: found, snapshot and tokenised, by content.

Files of the running interpreter and its packages, told apart by their names. A domain is written once as
JSONL and prepared like any corpus (`xlstm.data`): each content once, every tenth document held out, bytes,
hashed. Other packages on another machine give other text, which its content hash says.
"""

import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from xlstm.capability.text import Domain, DomainText
from xlstm.data import Corpus, CorpusError, CorpusSpec, load_corpus, prepare_corpus
from xlstm.data.sources import MAX_SOURCE_BYTES, python_roots

HELD_OUT = 0.1
LEGAL = ("licen", "copying", "notice", "copyright", "authors")
SUFFIXES = {
    ".py": "python",
    ".pyi": "stubs",
    ".h": "headers",
    ".hpp": "headers",
    ".cuh": "headers",
    ".json": "json",
    ".md": "documentation",
    ".rst": "documentation",
}
NAMES = ("python", "stubs", "headers", "documentation", "licences", "json")


def domain_of(path: Path) -> str | None:
    """The domain that a file belongs to by its name; None for none."""
    kind = SUFFIXES.get(path.suffix)
    if kind in (None, "documentation") and path.name.lower().startswith(LEGAL):
        return "licences" if path.suffix in ("", ".md", ".rst", ".txt") else None
    if path.name == "METADATA" and path.parent.suffix == ".dist-info":
        return "documentation"  # a package's long description
    return kind


def domain_folder(home: Path, name: str, max_bytes: int) -> Path:
    """Where a domain's corpus lies below the folder of all of them."""
    return home / f"domain-{name}-{max_bytes}"


def prepare_domains(
    home: Path, names: tuple[str, ...], max_bytes: int, least_held_out: int
) -> tuple[Domain, ...]:
    """The named domains of this machine, made once below `home`.

    Left out is one whose held-out part has fewer tokens than `least_held_out`.

    Raises CorpusError for an unknown name, and where fewer than two domains are left.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise CorpusError(f"domain {unknown[0]!r}: not known; use some of {', '.join(NAMES)}")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".domains.lock"):
        folders = {name: domain_folder(home, name, max_bytes) for name in names}
        _snapshot({n: f for n, f in folders.items() if not _snapshot_file(f).exists()}, 2 * max_bytes)
        prepared = [_prepared(name, folder, max_bytes) for name, folder in folders.items()]
    found = [c for c in prepared if c is not None and c.meta.validation.tokens >= least_held_out]
    if len(found) < 2:
        raise CorpusError(f"of the domains {', '.join(names)}, fewer than two have text on this machine")
    return tuple(
        Domain(name=corpus.meta.name.removeprefix("domain-"), content_hash=corpus.meta.content_hash)
        for corpus in found
    )


def open_domains(home: Path, task: DomainText) -> list[Corpus]:
    """The corpora of a task's domains; CorpusError where one holds other text than was planned with."""
    corpora = [load_corpus(domain_folder(home, domain.name, task.max_bytes)) for domain in task.domains]
    for corpus, domain in zip(corpora, task.domains, strict=True):
        if corpus.meta.content_hash != domain.content_hash:
            raise CorpusError(
                f"{corpus.folder}: holds other text ({corpus.meta.content_hash[:12]}) than was planned with"
                f" ({domain.content_hash[:12]}); plan again"
            )
    return corpora


def _prepared(name: str, folder: Path, max_bytes: int) -> Corpus | None:
    snapshot = _snapshot_file(folder)
    if not snapshot.stat().st_size:
        return None
    source = CorpusSpec(
        name=f"domain-{name}",
        source="files",
        paths=(str(snapshot),),
        max_bytes=max_bytes,
        validation_fraction=HELD_OUT,
    )
    try:
        return prepare_corpus(source, folder)
    except CorpusError:
        if len(snapshot.read_text(encoding="utf-8").splitlines()) > 1:
            raise
        return None  # a single document cannot be split


def _snapshot_file(folder: Path) -> Path:
    return folder.with_suffix(".jsonl")


def _snapshot(folders: Mapping[str, Path], most_bytes: int) -> None:
    """Write documents of domains beside their folders, in an order that depends on the files' names alone."""
    if not folders:
        return
    files: dict[str, list[tuple[str, Path]]] = {name: [] for name in folders}
    for shown, path in _installed_files():
        name = domain_of(path)
        if name in files:
            files[name].append((shown, path))
    for name, members in files.items():
        members.sort(key=lambda member: sha256(member[0].encode()).digest())
        _write(members, _snapshot_file(folders[name]), most_bytes)


def _write(members: list[tuple[str, Path]], snapshot: Path, most_bytes: int) -> None:
    """Until `most_bytes` of JSONL: more than a corpus takes, as copies are left out later."""
    unfinished = snapshot.with_name(f".{snapshot.name}")
    with unfinished.open("w", encoding="utf-8") as lines:
        for shown, path in members:
            text = _read(path)
            if text is not None:
                lines.write(json.dumps({"name": shown, "text": text}) + "\n")
            if lines.tell() > most_bytes:
                break
    unfinished.replace(snapshot)


def _read(path: Path) -> str | None:
    """The text of a file; None where it is no text, or a table and not something that someone wrote."""
    try:
        if path.stat().st_size > MAX_SOURCE_BYTES:
            return None
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def _installed_files() -> Iterator[tuple[str, Path]]:
    """Name and path of every file of the standard library, the packages and the interpreter's C headers."""
    roots = python_roots() | {"include": Path(sysconfig.get_paths()["include"])}
    for root_name, root in roots.items():
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f not in ("__pycache__", "site-packages", "dist-packages")]
            for name in names:
                if not name.startswith("__editable__"):
                    path = Path(folder, name)
                    yield f"{root_name}/{path.relative_to(root).as_posix()}", path
