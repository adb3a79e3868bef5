"""Files of a run that others read while it is written: replaced at once, never half there."""

import os
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Return once the content of `path`, a file or a folder of files, would survive a power cut."""
    for each in sorted(path.iterdir()) if path.is_dir() else (path,):
        with each.open("rb") as file:
            os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace `path`; a reader, or a kill at any instant, sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
