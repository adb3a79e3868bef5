"""Block sizes of the sequence kernels: a short table and a rule, nothing tuned at run time.

What may be chosen is in the table, in the order in which it is tried, and nothing in it is used before it has
given the right numbers on the machine at hand (`sequence_check`): a new Triton may miscompile what an older
one did not.

All have 4 warps: with 8, two groups of warps share the operands of a product, and a Triton before 3.8 may let
the first that is done overwrite what the second still reads (triton-lang/triton, issue 11047).
"""

from dataclasses import dataclass, replace

import torch

WARPS = 4

BUSY = 2
"""Programs for each multiprocessor that a walk over the chunks should have, by cutting sequences into
segments."""

SHORTEST = 4
"""Chunks of a segment, at least."""


LARGE = 2**25
"""Elements of q and v together from which on descriptors are worth what they cost the host: some tens of
microseconds a layer, behind kernels that by then take it longer than the host takes to launch them."""

WIDE = 128
"""Channels of q from which on they are worth it on the device: 64 are one block of the kernels' loops, where
nothing is left to load ahead, and gradients take 1.8 times as long (heads of 64/128 on an H100)."""


@dataclass(frozen=True, kw_only=True)
class WalkBlocks:
    """Of a walk over the chunks (`sequence_states`)."""

    tile: tuple[int, int]
    """Of C, at most: (BK, BV)."""
    tokens: int
    """Taken at a time, a divisor of the chunk."""
    stages: int


@dataclass(frozen=True, kw_only=True)
class ChunkBlocks:
    """Of a kernel that is parallel over chunks (`sequence_chunks`)."""

    rows: int
    """Tokens of a chunk that one program owns, a divisor of the chunk."""
    columns: int
    """Channels of a result that it owns."""
    reduce: int
    """Channels taken at a time in its loop, a divisor of `columns`."""
    stages: int
    registers: int | None = None
    """A thread may have, if fewer than the most: for more programs at a time."""


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Blocks are upper limits: `block_width` fits them to a head."""

    name: str
    chunk: int
    """L: tokens of a chunk; states are stored once per chunk."""
    precision: str
    """Of a product of float32 operands; without effect on 16-bit ones."""
    states: WalkBlocks
    state_gradients: WalkBlocks
    outputs: ChunkBlocks
    gradients: ChunkBlocks
    described: tuple[ChunkBlocks, ChunkBlocks] | None = None
    """For outputs and gradients, with as many columns, where the copy engine loads what their loops read."""


def _half(name: str, states: tuple[int, int], state_gradients: tuple[int, int]) -> SequenceConfig:
    chunks = ChunkBlocks(rows=64, columns=128, reduce=64, stages=3)
    return SequenceConfig(
        name=name,
        chunk=128,
        precision="tf32",
        states=WalkBlocks(tile=states, tokens=64, stages=3),
        state_gradients=WalkBlocks(tile=state_gradients, tokens=64, stages=3),
        outputs=chunks,
        gradients=chunks,
        described=(replace(chunks, stages=2, registers=168), chunks),
    )


def _single(name: str, chunk: int, precision: str, columns: int, stages: int) -> SequenceConfig:
    walk = WalkBlocks(tile=(32, 32), tokens=32, stages=stages)
    chunks = ChunkBlocks(rows=chunk, columns=columns, reduce=columns // 2, stages=stages)
    return SequenceConfig(
        name=name,
        chunk=chunk,
        precision=precision,
        states=walk,
        state_gradients=walk,
        outputs=chunks,
        gradients=chunks,
    )


HALF = (
    _half("half-128x64", states=(128, 64), state_gradients=(128, 64)),
    _half("half-64x64", states=(64, 64), state_gradients=(64, 64)),
    _half("half-32x32", states=(32, 32), state_gradients=(32, 32)),
)
"""For bfloat16 and float16."""

SINGLE = (
    _single("single-64", chunk=64, precision="tf32x3", columns=64, stages=2),
    _single("single-32", chunk=32, precision="ieee", columns=32, stages=1),
)
"""For float32."""


def candidates(dtype: torch.dtype) -> tuple[SequenceConfig, ...]:
    """Configurations for a dtype, best first."""
    return SINGLE if dtype == torch.float32 else HALF


def block_width(width: int, limit: int) -> int:
    """Block for `width` channels: the largest power of 2 that divides them, unless that is small; at least
    16."""
    block = limit
    while block > 64 and width % block:
        block //= 2
    return min(block, max(16, 1 << (width - 1).bit_length()))


def padded_width(width: int, config: SequenceConfig) -> int:
    """Channels that states have in memory: whole blocks of every kernel."""
    block = max(block_width(width, blocks.columns) for blocks in (config.outputs, config.gradients))
    return (width + block - 1) // block * block


def segments(programs: int, chunks: int, processors: int) -> int:
    """Into how many to cut sequences of `chunks` chunks; `programs`: of a walk over whole ones."""
    wanted = -(-BUSY * processors // programs)
    return max(1, min(wanted, chunks // SHORTEST))
