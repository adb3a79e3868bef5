"""Which code runs an operator: Triton on a GPU, the PyTorch reference elsewhere, or what the caller says."""

import importlib.util
import os
from typing import Literal

import torch

Backend = Literal["reference", "triton"]
ENVIRONMENT_VARIABLE = "ISOFLOP_KERNELS"
HAS_TRITON = importlib.util.find_spec("triton") is not None


def choose_backend(backend: str | None, device: torch.device) -> Backend:
    """The argument, else the environment, else by device. "triton" on a CPU means Triton's interpreter.

    Raises:
        ValueError: an unknown name, or "triton" where it cannot run.
    """
    chosen = backend or os.environ.get(ENVIRONMENT_VARIABLE) or _by_device(device)
    if chosen == "reference":
        return "reference"
    if chosen != "triton":
        raise ValueError(f'kernel backend {chosen!r}: must be "reference" or "triton"')
    if not HAS_TRITON:
        raise ValueError('kernel backend "triton": the package triton is not installed')
    if device.type != "cuda" and not interpreted():
        raise ValueError(f'kernel backend "triton" on {device.type}: needs a GPU, or TRITON_INTERPRET=1')
    return "triton"


def interpreted() -> bool:
    """Triton's interpreter runs the kernels: slow, exact, and without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _by_device(device: torch.device) -> Backend:
    return "triton" if device.type == "cuda" else "reference"
