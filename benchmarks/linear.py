"""The maps of a decode step on a GPU: bytes of weights a second, ours and the library's, by shape and tile.

    python -m benchmarks.linear --json linear.json

One sequence, bfloat16, the four maps of an mLSTM block and the head, replayed from a CUDA graph over copies
that together do not fit the chip's cache. Tiles other than the default are tried beside it.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear import skinny_linear, skinny_triton
from xlstm.generation.graphs import StepGraph
from xlstm.timing.measure import device_limits, device_name, seconds

SHAPES = {
    "qkvo 1.4B": (2048, 6144, True, False),
    "out 1.4B": (2048, 2048, False, False),
    "up 1.4B": (2048, 5504, True, True),
    "down 1.4B": (5504, 2048, False, False),
    "head 1.4B": (2048, 50304, True, False),
    "up 160M": (768, 2112, True, True),
}
"""Width in, width out, a norm before, SwiGLU after."""
TILES = ((4096, 4), (8192, 4), (8192, 8), (16384, 8))
"""Elements of the weight a program, and its warps; the second is the default."""
OUT_OF_CACHE = 400e6
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json")
    options = parser.parse_args()
    device = torch.device("cuda")
    copied = device_limits(device, torch.bfloat16)["copy_bytes_per_s"]
    print(f"{device_name(device)}, copies {copied / 1e12:.2f} TB/s\n")
    print("| map | with | microseconds | TB/s | of the copy bandwidth |\n| --- | --- | --- | --- | --- |")
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name in SHAPES:
            for row in measure(name, device):
                row["share"] = row["bytes_per_s"] / copied
                rows.append(row)
                print(
                    f"| {name} | {row['with']} | {1e6 * row['seconds']:.2f} | {row['bytes_per_s'] / 1e12:.2f}"
                    f" | {100 * row['share']:.1f} % |",
                    flush=True,
                )
                if options.json:
                    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(name: str, device: torch.device) -> list[dict[str, Any]]:
    """The library's product, and ours with every tile."""
    width, rows, norm, glu = SHAPES[name]
    made = rows * (2 if glu else 1) * width * 2
    copies = max(2, math.ceil(OUT_OF_CACHE / made))
    weights = [torch.randn(rows * (2 if glu else 1), width, device=device).bfloat16() for _ in range(copies)]
    x = torch.randn(1, width, device=device).bfloat16()
    gain = torch.ones(width, device=device).bfloat16() if norm else None
    found = [_timed(name, "library, map alone", made, weights, lambda w: F.linear(x, w), device)]
    default = skinny_triton.ELEMENTS, skinny_triton.WARPS
    for tile in TILES:
        skinny_triton.ELEMENTS, skinny_triton.WARPS = tile
        said = f"ours, {tile[0]} elements, {tile[1]} warps"
        ours = lambda w: skinny_linear(x, w, norm_weight=gain, glu=glu)[0]  # noqa: E731
        found.append(_timed(name, said, made, weights, ours, device))
    skinny_triton.ELEMENTS, skinny_triton.WARPS = default
    return found


def _timed(
    name: str,
    said: str,
    made: int,
    weights: list[Tensor],
    run: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, Any]:
    def all_of_them() -> None:
        for weight in weights:
            run(weight)

    graph = StepGraph(all_of_them, device)
    graph.replay()
    each = min(seconds(graph.replay, device) for _ in range(REPEATS)) / len(weights)
    return {"map": name, "with": said, "seconds": each, "bytes_per_s": made / each}


if __name__ == "__main__":
    main()
