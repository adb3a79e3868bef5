# mypy: disable-error-code="no-untyped-def"
"""The product of up to 64 vectors with a matrix, as a link in the chain of a decode step.

The matrix is read once and decides the time; the products themselves are nothing. A program owns some rows of
the matrix and a part of their length, few enough of both that all programs together keep every multiprocessor
busy. It has the chip's cache fetch its part while the kernel before still runs (weights alone: see
`kernels.dependent` on what a link may do), then goes over it in tiles. Where the length is cut, the
program of a tile that arrives last adds the parts, in their order whichever arrived when.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.dependent import dependent

BLOCK_N, BLOCK_K, STAGES, WARPS = 64, 64, 6, 4
"""With SwiGLU half of the rows are of the gate, half of what it multiplies: BLOCK_N / 2 is `COUNTED_ROWS`."""
PROGRAMS = 90
"""Wanted: fewer than the 132 multiprocessors of an H100 will do, each with five tiles on their way.
More would cut its length, and each part has to be written and added."""
FETCH = 1024
"""Of a part of the length, that the chip's cache fetches in advance: together at most 25 MB."""
SHORTEST = 256
"""Of a part of the length: below, writing and adding the parts costs more than it gains."""


def launch_batch_linear(x: Tensor, weight: Tensor, glu: bool, arrivals: Tensor) -> Tensor:
    """Arguments as `batch_linear`, checked."""
    batch, width = x.shape
    rows = weight.shape[0] // (2 if glu else 1)
    y = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    block_m = max(16, triton.next_power_of_2(batch))
    block_n = BLOCK_N // 2 if glu else BLOCK_N
    tiles, splits = triton.cdiv(rows, block_n), parts(rows, width, glu)
    partial = y
    if splits > 1:
        partial = torch.empty(splits, block_m, weight.shape[0], dtype=torch.float32, device=x.device)
    _batch_linear_kernel[(tiles, splits)](
        x.contiguous(), weight, y, partial, arrivals, batch, rows, width,
        GLU=glu, SPLITS=splits, EVEN=width % BLOCK_K == 0,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=BLOCK_K, THREADS=32 * WARPS, FETCH=FETCH,
        num_warps=WARPS, num_stages=STAGES, **dependent(x.device),
    )  # fmt: skip
    return y


def parts(rows: int, width: int, glu: bool) -> int:
    """Into how many parts the length of a matrix is cut: a power of two."""
    tiles = triton.cdiv(rows, BLOCK_N // 2 if glu else BLOCK_N)
    splits = 1
    while tiles * splits < PROGRAMS and width // (2 * splits) >= SHORTEST:
        splits *= 2
    return splits


@triton.jit
def _fetch(rows, first, last, ROWS: tl.constexpr, THREADS: tl.constexpr):
    """Have the chip's cache fetch elements first to last of these rows, a piece each thread."""
    PIECES: tl.constexpr = THREADS // ROWS
    each = (last - first) // PIECES
    starts = first + each * tl.arange(0, PIECES)
    places = rows[:, None] + starts[None, :]
    size = tl.zeros([ROWS, PIECES], tl.int32) + each * (rows.dtype.element_ty.primitive_bitwidth // 8)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r",
        [places.to(tl.int64, bitcast=True), size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch"])
def _batch_linear_kernel(
    x, weight, y, partial, arrivals, batch, rows, width,
    GLU: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, THREADS: tl.constexpr,
    FETCH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    ns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    ms = tl.arange(0, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    in_n, in_m = ns < rows, ms < batch
    length = tl.cdiv(tl.cdiv(width, BLOCK_K), SPLITS) * BLOCK_K
    first = split * length
    last = tl.minimum(first + length, width)
    upper = weight + tl.minimum(ns, rows - 1).to(tl.int64) * width
    lower = upper + rows.to(tl.int64) * width
    if OVERLAP:
        if EVEN:
            fetched = tl.minimum(first + FETCH, last)
            _fetch(upper, first, fetched, BLOCK_N, THREADS)
            if GLU:
                _fetch(lower, first, fetched, BLOCK_N, THREADS)
        gdc_wait()
        # Not before: what comes next would fetch too, and more than the cache holds.
        gdc_launch_dependents()

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    low = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(first, last, BLOCK_K):
        here = k + ks
        in_x, in_w = in_m[:, None], in_n[:, None]
        if not EVEN:
            in_x, in_w = in_x & (here < last)[None, :], in_w & (here < last)[None, :]
        a = tl.load(x + ms[:, None] * width + here[None, :], mask=in_x, other=0.0)
        w = tl.load(upper[:, None] + here[None, :], mask=in_w, other=0.0)
        acc = tl.dot(a, tl.trans(w), acc, input_precision="ieee")
        if GLU:
            w = tl.load(lower[:, None] + here[None, :], mask=in_w, other=0.0)
            low = tl.dot(a, tl.trans(w), low, input_precision="ieee")

    mine = ms[:, None] * (rows * (2 if GLU else 1)) + ns[None, :]
    there = in_m[:, None] & in_n[None, :]
    if SPLITS == 1:
        _finish(acc, low, y, ms[:, None] * rows + ns[None, :], there, GLU)
    else:
        step = BLOCK_M * rows * (2 if GLU else 1)
        tl.store(partial + split * step + mine, acc, mask=there)
        if GLU:
            tl.store(partial + split * step + mine + rows, low, mask=there)
        tl.debug_barrier()
        before = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
        if before == SPLITS - 1:
            tl.store(arrivals + tile, 0)
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            low = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for part in tl.static_range(SPLITS):
                place = partial + part * step + mine
                acc += tl.load(place, mask=there, other=0.0, cache_modifier=".cg")
                if GLU:
                    low += tl.load(place + rows, mask=there, other=0.0, cache_modifier=".cg")
            _finish(acc, low, y, ms[:, None] * rows + ns[None, :], there, GLU)


@triton.jit
def _finish(acc, low, y, place, there, GLU: tl.constexpr):
    dtype = y.dtype.element_ty
    result = acc.to(dtype)
    if GLU:
        wide = result.to(tl.float32)
        result = ((wide * tl.sigmoid(wide)).to(dtype).to(tl.float32) * low.to(dtype).to(tl.float32)).to(dtype)
    tl.store(y + place, result, mask=there)
