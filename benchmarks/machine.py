"""Where a benchmark ran: what its results are to say about themselves."""

import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def about(*packages: str) -> dict[str, Any]:
    """The device, the versions of CUDA, cuDNN and these packages where they are installed, the date, and the
    command, paths without their folders."""
    cuda = torch.cuda.is_available()
    main = getattr(sys.modules["__main__"], "__spec__", None)
    program = main.name if main else Path(sys.argv[0]).stem
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "versions": {name: version for name in packages if (version := _version(name))},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python -m", program, *(Path(word).name for word in sys.argv[1:])]),
    }


def sentence(found: dict[str, Any]) -> str:
    """The same, as the line below a page's title."""
    versions = [f"{name} {version}" for name, version in found["versions"].items()]
    versions += [f"{name} {found[key]}" for name, key in (("CUDA", "cuda"), ("cuDNN", "cudnn")) if found[key]]
    return f"{found['date']}, {found['device']}; {', '.join(versions)}. Made by `{found['command']}`."


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
