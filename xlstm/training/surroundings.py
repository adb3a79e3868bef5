"""What a run ran on, as tags: versions, device, kernels, revision of the code."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from xlstm.run_spec import RunSpec

PACKAGES = ("torch", "lightning", "numpy", "mlflow", "triton")


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def surroundings(spec: RunSpec, device: torch.device, threads: int) -> dict[str, str]:
    """Tags of an MLflow run; none of them changes what the run computes."""
    revision = git_revision()
    tags = {
        "isoflop.device": device_name(device),
        "isoflop.threads": str(threads),
        "isoflop.kernel_backend": _kernel_backend(spec, device),
        "isoflop.git_revision": revision,
        "isoflop.version.python": platform.python_version(),
        "mlflow.source.name": "isoflop",
        "mlflow.source.git.commit": revision.removesuffix("-dirty"),
    }
    for package in PACKAGES:
        try:
            tags[f"isoflop.version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        tags["isoflop.version.cuda"] = str(torch.version.cuda)
    return tags


def _kernel_backend(spec: RunSpec, device: torch.device) -> str:
    library = {"transformer": "sdpa", "lstm": "cudnn" if device.type == "cuda" else "torch"}
    if spec.model.arch in library:
        return library[spec.model.arch]
    from kernels.backends import choose_backend

    return choose_backend(None, device)


def git_revision() -> str:
    """Commit of the checkout that this code runs from, `-dirty` if changed since; `unknown` outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
