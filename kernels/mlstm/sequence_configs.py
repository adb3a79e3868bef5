"""Block sizes of the sequence kernels: a short table and a rule, nothing tuned at run time.

Every configuration that the rule can choose is in the table, is compiled and checked by a test on a GPU, and is checked
once more in every process that uses it (`sequence_check`), since a new Triton may miscompile what an older one did not.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Blocks are upper limits: `block_width` fits them to a head."""

    name: str
    chunk: int
    """L: tokens of a chunk; states are stored once per chunk."""
    precision: str
    """Of a product of float32 operands; without effect on 16-bit ones."""
    rows: int
    """Tokens of a chunk that one program of `sequence_chunks` owns, a divisor of `chunk`."""
    reduce: int
    """Channels taken at a time in its loop."""
    columns: int
    """Channels of a result that it owns."""
    output_warps: int
    output_stages: int
    output_registers: int | None
    """Limit per thread, so that several programs share a multiprocessor and hide each other's waiting."""
    gradient_warps: int
    gradient_stages: int
    gradient_registers: int | None
    state_tile: int
    """Largest side of a tile of C in `sequence_states`. Larger ones than 32 were faster but gave wrong numbers with
    Triton 3.6.0 on an H200, so none is in the table."""
    state_tokens: int
    """Tokens taken at a time there, a divisor of `chunk`."""
    state_stages: int


HALF = (
    SequenceConfig(
        name="half-128",
        chunk=128,
        precision="tf32",
        rows=64,
        reduce=64,
        columns=128,
        output_warps=4,
        output_stages=3,
        output_registers=None,
        gradient_warps=4,
        gradient_stages=3,
        gradient_registers=None,
        state_tile=32,
        state_tokens=64,
        state_stages=3,
    ),
)
"""For bfloat16 and float16, in the order in which they are tried."""

SINGLE = (
    SequenceConfig(
        name="single-64",
        chunk=64,
        precision="tf32x3",
        rows=64,
        reduce=32,
        columns=64,
        output_warps=4,
        output_stages=2,
        output_registers=None,
        gradient_warps=4,
        gradient_stages=2,
        gradient_registers=None,
        state_tile=32,
        state_tokens=32,
        state_stages=2,
    ),
    SequenceConfig(
        name="single-32",
        chunk=32,
        precision="ieee",
        rows=32,
        reduce=16,
        columns=32,
        output_warps=4,
        output_stages=1,
        output_registers=None,
        gradient_warps=4,
        gradient_stages=1,
        gradient_registers=None,
        state_tile=32,
        state_tokens=32,
        state_stages=1,
    ),
)
"""For float32."""


def candidates(dtype: torch.dtype) -> tuple[SequenceConfig, ...]:
    """Configurations for a dtype, best first."""
    return SINGLE if dtype == torch.float32 else HALF


def block_width(width: int, limit: int) -> int:
    """Block for `width` channels: the largest power of 2 that divides them, unless that is small; at least 16."""
    block = limit
    while block > 64 and width % block:
        block //= 2
    return min(block, max(16, 1 << (width - 1).bit_length()))


def state_tile(config: SequenceConfig, widths: tuple[int, int], heads: int, processors: int) -> tuple[int, int]:
    """Tile (BK, BV) of C: as large as leaves a program for each multiprocessor, but at least 32 wide.

    `heads` counts sequences times heads; `widths` are the padded ones.
    """
    tile = [block_width(width, config.state_tile) for width in widths]
    while heads * (widths[0] // tile[0]) * (widths[1] // tile[1]) < processors and max(tile) > 32:
        tile[tile[1] >= tile[0]] //= 2
    return tile[0], tile[1]
