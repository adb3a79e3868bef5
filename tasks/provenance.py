"""Where results come from: versions, revision, corpus."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xlstm.data import Corpus

PACKAGES = ("isoflop", "torch", "lightning", "triton", "prefect", "mlflow", "polars", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Python and the packages that shape a result; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the code with `-dirty` where tracked files differ; None outside a repository."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def corpus_facts(corpus: Corpus) -> dict[str, object]:
    """What a report says about the data, in the keys of `Provenance.data`."""
    meta = corpus.meta
    return {
        "name": meta.name,
        "tokenizer": meta.tokenizer,
        "vocab_size": meta.vocab_size,
        "hash": meta.content_hash,
        "files": meta.train.documents + meta.validation.documents,
        "bytes": meta.train.bytes + meta.validation.bytes,
        "train_tokens": meta.train.tokens,
        "val_tokens": meta.validation.tokens,
        "split": "by file, no file in both",
        "unigram_loss": meta.unigram_entropy,
        "bytes_per_token": meta.bytes_per_token,
    }
