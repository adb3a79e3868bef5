"""Whether a kernel gives the right numbers here: tried once, in a process of its own, and remembered.

A Triton that a kernel was not written for may abort the process that compiles it, compile it to what kills
the device context, or miscompile it without a word. So a kernel's module is run as a program on a random
problem, and answers with its largest error; no answer in time is an infinite error. Verdicts are kept in
memory, and on disk beside Triton's cache for the same kernels, compiler and device.
"""

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LIMIT_S = 300.0
FAILED = math.inf

_verdicts: dict[tuple[Any, torch.device], float] = {}


def verdict(trial: Any, device: torch.device, module: str, tolerance: float) -> float:
    """The largest error of a trial, a frozen dataclass that `python -m module` reads as JSON.

    Raises:
        RuntimeError: a CUDA graph is being captured, and nothing was tried before.
    """
    key = (trial, device)
    if key not in _verdicts:
        path = verdict_path(trial, device, module)
        if path.exists():
            _verdicts[key] = float(json.loads(path.read_text())["error"])
        elif torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{trial}: run the model once before capturing a CUDA graph, so it is tried")
        else:
            _verdicts[key] = attempt(trial, device, module, tolerance, path)
    return _verdicts[key]


def verdicts() -> dict[str, float]:
    """What this process uses or has refused, and the largest error of each; infinite where it did not run."""
    return {f"{trial} on {device}": error for (trial, device), error in _verdicts.items()}


def attempt(trial: Any, device: torch.device, module: str, tolerance: float, path: Path) -> float:
    """In a process of its own. What it finds is kept, unless it lacked time or memory."""
    request = json.dumps(asdict(trial) | {"device": device.index or 0})
    root = str(Path(__file__).parents[1])
    paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", module, request]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        logger.warning("kernels: %s gave no answer in %.0f s, not used", trial, LIMIT_S)
        return FAILED
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message")[-300:]
        logger.warning("kernels: %s ends with code %d, not used: %s", trial, done.returncode, reason)
        if "out of memory" not in reason:
            _keep(path, trial, FAILED)
        return FAILED
    error = float(json.loads(done.stdout.splitlines()[-1])["error"])
    if error <= tolerance:
        logger.info("kernels: %s, error %.1e", trial, error)
    else:
        logger.warning("kernels: %s is wrong here by %.1e, not used", trial, error)
    _keep(path, trial, error)
    return error


def verdict_path(trial: Any, device: torch.device, module: str) -> Path:
    """Named after everything that a verdict depends on: all sources beside the module among it."""
    import triton

    sources = _folder(module).glob("*.py")
    assembler = triton.knobs.nvidia.ptxas
    parts = [
        repr(trial), torch.cuda.get_device_name(device), torch.__version__, triton.__version__,
        str(assembler.version), *(source.read_text() for source in sorted(sources)),
    ]  # fmt: skip
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return verdict_folder(module) / f"{digest}.json"


def verdict_folder(module: str) -> Path:
    """Where the verdicts of a module's trials are kept."""
    import triton

    return Path(triton.knobs.cache.dir) / f"isoflop-{_folder(module).name}"


def _folder(module: str) -> Path:
    return Path(__file__).parents[1].joinpath(*module.split(".")[:-1])


def largest_error(
    ours: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], device: torch.device, repeats: int
) -> float:
    """Of whole tensors, relative to their norms, over runs that must give equal bits; else infinite."""
    results = []
    for _ in range(repeats):
        if device.type == "cuda":  # what is not written must not look right by chance
            torch.full((2**26,), torch.nan, device=device)
        results.append(ours())
    for again in results[1:]:
        if not all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True)):
            return FAILED
    return max(_relative(a, b) for a, b in zip(results[0], expected, strict=True))


def answer(error: float) -> None:
    """Print it for the process that waits for it."""
    print(json.dumps({"error": error}))


def _relative(x: Tensor, reference: Tensor) -> float:
    """Of what must be zero, the norm in a unit that tolerates none."""
    reference = reference.detach().to(x.device)
    error = float((x.double() - reference).norm() / reference.norm().clamp_min(1e-30))
    return error if math.isfinite(error) else FAILED


def _keep(path: Path, trial: Any, error: float) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({"trial": asdict(trial), "error": error}))
        new.replace(path)
    except OSError as problem:
        logger.warning("kernels: the verdict is not kept, the next process tries again: %s", problem)
