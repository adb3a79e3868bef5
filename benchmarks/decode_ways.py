"""A decode step in several ways, beside each other: which maps, by which tiles; the attention step's tiles.

    python -m benchmarks.decode_ways --json ways.json [--steps 400M:mlstm:16 ...] [--shapes 16x16x128x16384]

Of one or two sequences the ways are tiles of the maps of a vector; of more, the library's products and chains
of our maps. All ways of a case are built in one process and timed in turns, and the fastest of some rounds
counts. A row has the ratio to the first way's time, and how far the first step's logits are from that way's:
all differ by the noise of bfloat16. The attention step (batch x heads x width x tokens) goes over caches that
do not fit the chip's.
"""

import argparse
import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.inference_cases import model_of
from kernels.attention import attention_step, decode_triton
from kernels.linear import several_triton, skinny, skinny_triton
from xlstm.generation import Session, packed, random_model
from xlstm.generation.graphs import StepGraph
from xlstm.models import LanguageModel
from xlstm.timing.measure import device_limits, seconds

Row = dict[str, Any]
Constants = Mapping[tuple[ModuleType, str], Any]
"""Values of modules' constants."""

STEPS = tuple(
    f"{size}:{arch}:{batch}"
    for size, arch in product(("160M", "400M", "1.4B"), ("mlstm", "transformer"))
    for batch in (1, 4, 8, 16)
)
VECTOR_TILES = ((4096, 2048), (8192, 2048), (2048, 2048), (4096, 4096), (1024, 1024))
"""Elements of the weight a program, and a warp."""
CHAIN_TILES = ((16, 4096, 512), (16, 2048, 512), (32, 4096, 512), (32, 2048, 512))
"""Rows of the weight a program, bytes of a row at a time, and of those a warp."""
SHAPES = (
    "16x16x128x16384", "64x16x128x2048", "4x16x128x2048", "1x16x128x2048", "1x16x128x16384",
    "1x16x128x65536", "16x16x64x16384", "64x12x64x2048", "1x12x64x2048", "1x16x64x16384", "4x16x64x4096",
)  # fmt: skip
ATTENTION_TILES = ((8, 1, 4096, 256), (16, 1, 4096, 256), (32, 2, 4096, 256), (32, 4, 1024, 128))
"""Tokens in flight and warps of a program, programs at least, parts at most."""
WARM_UP, ROUNDS, STEPS_A_ROUND = 2, 7, 48
PROMPT, CAPACITY, VOCABULARY = 512, 2048, 50_304
OUT_OF_CACHE = 200e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", nargs="*", default=STEPS, metavar="SIZE:ARCH:BATCH")
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="BxHxDxT")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.decode_ways needs an NVIDIA GPU: its kernels' tiles are what it times")
    device = torch.device("cuda")
    copied = device_limits(device, torch.bfloat16)["copy_bytes_per_s"]
    about = machine.about("torch", "triton") | {"copy_bytes_per_s": copied}
    print(f"{machine.sentence(about)}\n\n| case | way | microseconds | over the first | apart | of copies |")
    print(6 * "| --- " + "|")
    rows: list[Row] = []
    with torch.inference_mode():
        for row in chain(steps(options.steps, device), attention(options.shapes, copied, device)):
            rows.append(row)
            share = f"{100 * row['share']:.0f} %" if "share" in row else ""
            print(
                f"| {row['case']} | {row['way']} | {1e6 * row['seconds']:.1f} | {row['ratio']:.3f}"
                f" | {row['apart']:.4f} | {share} |",
                flush=True,
            )
            if options.json:
                options.json.write_text(
                    json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8"
                )


def steps(cases: list[str], device: torch.device) -> Iterator[Row]:
    """Every way of these models and batches."""
    for case in cases:
        size, arch, batch = case.split(":")
        gc.collect()
        torch.cuda.empty_cache()
        model = random_model(model_of(size, arch), device=device)
        prompts = torch.randint(VOCABULARY, (int(batch), PROMPT), device=device)
        built = {}
        for way, constants in step_ways(int(batch)).items():
            with held(constants):
                built[way] = _step(model, prompts)
        yield from beside(case, built, STEPS_A_ROUND, device)


def _step(model: LanguageModel, prompts: Tensor) -> tuple[Callable[[], object], Tensor]:
    """A round of steps, captured, and the logits of the first."""
    session = Session(model, len(prompts), CAPACITY)
    session.prefill(prompts)
    logits = session.step(prompts[:, 0]).double().clone()
    return lambda: [session.step() for _ in range(STEPS_A_ROUND)], logits


def attention(shapes: list[str], copied: float, device: torch.device) -> Iterator[Row]:
    """Every tile at these shapes, with the share of the speed of copies at which the cache is read."""
    for shape in shapes:
        B, H, D, T = (int(number) for number in shape.split("x"))
        read = 2 * B * H * T * D * 2
        count = max(1, math.ceil(OUT_OF_CACHE / read))
        new = [torch.randn(B, H, D, device=device).bfloat16() for _ in range(3)]
        caches = [torch.randn(2, B, H, T + 64, D, device=device, dtype=torch.bfloat16) for _ in range(count)]
        lengths = torch.full((B,), T, device=device)
        built = {}
        for way, constants in attention_ways().items():
            with held(constants):
                built[way] = _over(new, caches, lengths)
        for row in beside(shape, built, count, device):
            yield row | {"share": read / row["seconds"] / copied}


def _over(new: list[Tensor], caches: list[Tensor], lengths: Tensor) -> tuple[Callable[[], object], Tensor]:
    """A step over each of these caches, captured, and the output over the first."""
    q, k, v = new

    def over() -> None:
        for keys, values in caches:
            attention_step(q, k, v, keys, values, lengths)

    keys, values = caches[0]
    found = attention_step(q, k, v, keys, values, lengths).double()
    return StepGraph(over, lengths.device).replay, found


def step_ways(batch: int) -> dict[str, Constants]:
    """How a step of so many sequences can go; the first is the default, or the library's."""
    if batch <= skinny.ALONE:
        return {
            f"{elements} elements, {warp} a warp": {
                (skinny_triton, "ELEMENTS"): elements,
                (skinny_triton, "WARP_ELEMENTS"): warp,
            }
            for elements, warp in VECTOR_TILES
        }
    found: dict[str, Constants] = {"products": {(packed, "most_chained"): lambda d_model: skinny.ALONE}}
    for rows, piece, warp in CHAIN_TILES:
        found[f"chain, {rows} rows, {piece} bytes of one, {warp} a warp"] = {
            (packed, "most_chained"): lambda d_model: batch,
            (several_triton, "BLOCK_N"): rows,
            (several_triton, "CHUNK_BYTES"): piece,
            (several_triton, "WARP_BYTES"): warp,
        }
    return found


def attention_ways() -> dict[str, Constants]:
    names = ("BLOCK_T", "WARPS", "PROGRAMS", "MOST_PARTS")
    return {
        f"{tile[0]} tokens, warps {tile[1]}, programs {tile[2]}, parts {tile[3]}": {
            (decode_triton, name): value for name, value in zip(names, tile, strict=True)
        }
        for tile in ATTENTION_TILES
    }


def beside(
    case: str, built: Mapping[str, tuple[Callable[[], object], Tensor]], count: int, device: torch.device
) -> Iterator[Row]:
    """Rows of these ways, timed in turns; each runs `count` of what a row is of."""
    first = next(iter(built.values()))[1]
    rounds = [[seconds(run, device) for run, _ in built.values()] for _ in range(WARM_UP + ROUNDS)]
    fastest = [min(times) / count for times in zip(*rounds[WARM_UP:], strict=True)]
    for (way, (_, result)), each in zip(built.items(), fastest, strict=True):
        apart = float((result - first).norm() / first.norm())
        yield {"case": case, "way": way, "seconds": each, "ratio": each / fastest[0], "apart": apart}


@contextmanager
def held(constants: Constants) -> Iterator[None]:
    """These values of constants of modules, for a while."""
    before = {place: getattr(*place) for place in constants}
    for (module, name), value in constants.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


if __name__ == "__main__":
    main()
