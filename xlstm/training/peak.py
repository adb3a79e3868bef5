"""The most FLOPs a second that a device's matrix units give here: measured once a machine, and kept."""

import json
import time
from pathlib import Path

import torch
from filelock import FileLock

from xlstm.training.files import write_atomically

SIDE = 8192
"""Of the square matrices in bfloat16: large enough to reach the peak, small enough for any GPU."""
BURSTS, PRODUCTS = 8, 12
"""The best burst counts: a GPU that others share, or that is still cold, makes the rest slower."""
FILE = "matrix-peak.json"


def matrix_peak(device: torch.device, folder: Path | None) -> float:
    """FLOP/s of products in bfloat16 on a GPU; from `folder`, and kept there, where one is given.

    One measurement a kind of GPU and version of torch. Processes that ask at once wait for the first.
    """
    if folder is None:
        return _measure(device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    name = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    with FileLock(folder / f".{FILE}.lock"):
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if name not in known:
            known[name] = _measure(device)
            write_atomically(path, json.dumps(known, indent=1) + "\n")
        return known[name]


def _measure(device: torch.device) -> float:
    with torch.cuda.device(device):
        a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        best = 0.0
        for _ in range(BURSTS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(PRODUCTS):
                torch.mm(a, b, out=out)
            torch.cuda.synchronize()
            best = max(best, PRODUCTS * 2 * SIDE**3 / (time.perf_counter() - start))
        return best
