"""Files of a run that others read while it is written: replaced at once, never half there."""

import os
import tempfile
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Return once the content of `path`, a file or a folder of files, would survive a power cut."""
    for each in sorted(path.iterdir()) if path.is_dir() else (path,):
        with each.open("rb") as file:
            os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace `path`; a reader, or a kill at any instant, sees the old text or the new one.

    Several may write at once: each has a file of its own until then, the last one stays.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
