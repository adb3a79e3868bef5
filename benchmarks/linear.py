"""The maps of a decode step on a GPU: bytes of weights a second, ours and the library's, by shape and tile.

    python -m benchmarks.linear --json linear.json [--batches 1 4 8 64]

bfloat16, the four maps of an mLSTM block and the head, replayed from a CUDA graph over copies that together
do not fit the chip's cache. Of one sequence with the norm before and SwiGLU after, and tiles other than the
default beside it; of up to 8 ours beside the library's, with norm and SwiGLU both, in kernels of their own
around the library's; of more the library's alone, with SwiGLU.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.decode_ways import VECTOR_TILES, held
from kernels.linear import add_norm, skinny_linear, skinny_triton, swiglu
from xlstm.generation.graphs import StepGraph
from xlstm.timing.measure import device_limits, device_name, seconds

SHAPES = {
    "qkvo 1.4B": (2048, 6144, True, False),
    "out 1.4B": (2048, 2048, False, False),
    "up 1.4B": (2048, 5504, True, True),
    "down 1.4B": (5504, 2048, False, False),
    "head 1.4B": (2048, 50304, True, False),
    "qkvo 400M": (1024, 3072, True, False),
    "out 400M": (1024, 1024, False, False),
    "up 400M": (1024, 2752, True, True),
    "down 400M": (2752, 1024, False, False),
    "up 160M": (768, 2112, True, True),
}
"""Width in, width out, a norm before, SwiGLU after."""
SEVERAL = 8
"""Sequences up to which ours is measured."""
OUT_OF_CACHE, EPS = 400e6, 1e-6
REPEATS, REPLAYS = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    options = parser.parse_args()
    device = torch.device("cuda")
    copied = device_limits(device, torch.bfloat16)["copy_bytes_per_s"]
    print(f"{device_name(device)}, copies {copied / 1e12:.2f} TB/s\n")
    print("| map | B | with | microseconds | TB/s | of the copy bandwidth |\n" + 6 * "| --- " + "|")
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name, batch in ((name, batch) for batch in options.batches for name in SHAPES):
            for row in measure(name, batch, device):
                row["share"] = row["bytes_per_s"] / copied
                rows.append(row)
                print(
                    f"| {name} | {batch} | {row['with']}"
                    f" | {1e6 * row['seconds']:.2f} | {row['bytes_per_s'] / 1e12:.2f}"
                    f" | {100 * row['share']:.1f} % |",
                    flush=True,
                )
                if options.json:
                    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(name: str, batch: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """The library's product and ours: of one sequence with every tile, of several with what is around."""
    width, rows, norm, glu = SHAPES[name]
    made = rows * (2 if glu else 1) * width * 2
    copies = max(2, math.ceil(OUT_OF_CACHE / made))
    weights = [torch.randn(rows * (2 if glu else 1), width, device=device).bfloat16() for _ in range(copies)]
    x = torch.randn(batch, width, device=device).bfloat16()
    gain = torch.ones(width, device=device).bfloat16() if norm else None

    def timed(said: str, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        each = _seconds(run, weights, device)
        return {"map": name, "batch": batch, "with": said, "seconds": each, "bytes_per_s": made / each}

    if batch == 1:
        yield timed("library, map alone", lambda w: F.linear(x, w))
        for tile in VECTOR_TILES:
            said = f"ours, {tile[0]} elements, {tile[1]} a warp"
            with held({(skinny_triton, "ELEMENTS"): tile[0], (skinny_triton, "WARP_ELEMENTS"): tile[1]}):
                yield timed(said, lambda w: skinny_linear(x, w, norm_weight=gain, glu=glu)[0])
        return
    if batch <= SEVERAL:

        def products(w: Tensor) -> Tensor:
            normed = x if gain is None else add_norm(x, None, gain, EPS)[1]
            return swiglu(F.linear(normed, w)) if glu else F.linear(normed, w)

        yield timed("library, map alone", lambda w: F.linear(x, w))
        yield timed("library, with what is around", products)
        yield timed("ours", lambda w: skinny_linear(x, w, norm_weight=gain, norm_eps=EPS, glu=glu)[0])
        return
    yield timed("library", lambda w: swiglu(F.linear(x, w)) if glu else F.linear(x, w))


def _seconds(run: Callable[[Tensor], Tensor], weights: list[Tensor], device: torch.device) -> float:
    """Of one map."""

    def all_of_them() -> None:
        for weight in weights:
            run(weight)

    graph = StepGraph(all_of_them, device)

    def replays() -> None:
        for _ in range(REPLAYS):
            graph.replay()

    replays()
    return min(seconds(replays, device) for _ in range(REPEATS)) / (REPLAYS * len(weights))


if __name__ == "__main__":
    main()
