# mypy: disable-error-code="no-untyped-def"
"""The attention decode step on a GPU: the cache is read once, by enough programs to fill the machine.

One query a head gives a program nothing to share, so the cache is cut along its length: each program keeps
the running softmax of its part, and a second kernel joins the parts. How far the cache reaches is read on the
device: the launch is the same at every length, as a CUDA graph needs.

Both kernels are dependent launches (`kernels.dependent`) that wait before they read anything: what
they gain is their start, and that the map after them can request its weights meanwhile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.dependent import dependent

BLOCK_T, WARPS = 8, 1
"""Tokens that a program has in flight, and its warps. Of one warp nobody waits for another, and there is room
for so many that one always has a load to make: on an H100 the cache of a batch is read at 94 to 99 % of the
bandwidth of copies, by programs of four warps and 32 tokens at 62 to 80 %."""
PROGRAMS = 4096
"""At least: 31 for each of the 132 multiprocessors of an H100."""
PART_TOKENS, MOST_PROGRAMS = 256, 4 * PROGRAMS
"""Of a part where there are more than enough programs, so that they run in many short waves: programs of
which not all fit at once take the time of two waves. But not beyond so many programs."""
LEAST_TOKENS, MOST_PARTS = 16, 256
"""Of a part of a full cache: with less, joining them costs more than they gain."""
JOINED, MOST_WARPS = 8192, 16
"""Of the parts' sums a warp of the kernel that joins them, and warps that it has at most."""


def launch_step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Arguments as `attention_step`, checked."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, width = q.shape
    capacity = keys.shape[2]
    h = torch.empty(batch, heads, width, dtype=v.dtype, device=v.device)
    if h.numel() == 0:
        return h
    rows, splits = batch * heads, parts(batch * heads, capacity)
    sums = torch.empty(rows, splits, width, dtype=torch.float32, device=q.device)
    terms = torch.empty(rows, splits, 2, dtype=torch.float32, device=q.device)
    block_d = max(16, triton.next_power_of_2(width))
    launch = dependent(q.device)
    _part_kernel[(rows, splits)](
        q, k, v, keys, values, lengths, sums, terms,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        heads, capacity, width, width**-0.5,
        BLOCK_T=BLOCK_T, BLOCK_D=block_d, num_warps=WARPS, **launch,
    )  # fmt: skip
    _join_kernel[(rows,)](
        sums, terms, h, width,
        SPLITS=splits, BLOCK_D=block_d, num_warps=join_warps(splits, block_d), **launch,
    )  # fmt: skip
    return h


def parts(rows: int, capacity: int) -> int:
    """Into how many parts the cache of each of `rows` heads is cut: a power of two."""
    filling = triton.next_power_of_2(triton.cdiv(PROGRAMS, rows))
    evening = min(capacity // PART_TOKENS, MOST_PROGRAMS // rows)
    wanted = max(filling, _power_of_two(evening))
    return min(MOST_PARTS, wanted, _power_of_two(capacity // LEAST_TOKENS))


def join_warps(splits: int, block_d: int) -> int:
    return min(MOST_WARPS, max(4, splits * block_d // JOINED))


def _power_of_two(n: int) -> int:
    """The largest that is at most n, and at least 1."""
    return 1 << max(0, n.bit_length() - 1)


@triton.jit
def _part_kernel(
    q, k, v, keys, values, lengths, sums, terms,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, heads, capacity, width, scale,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Maximum, sum of weights, weighted sum of values over one part, of an empty one without the last; the
    first has the new token too."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    b, head = row // heads, row % heads
    ds = tl.arange(0, BLOCK_D)
    inside = ds < width
    query = tl.load(q + b * q_batch + head * q_head + ds, mask=inside, other=0.0).to(tl.float32) * scale
    length = tl.load(lengths + b).to(tl.int32)
    base = row * capacity * width

    top = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    if part == 0:
        key = tl.load(k + b * k_batch + head * k_head + ds, mask=inside, other=0.0)
        value = tl.load(v + b * v_batch + head * v_head + ds, mask=inside, other=0.0)
        # No program reads this place: all stop before it.
        room = inside & (length < capacity)
        tl.store(keys + base + length.to(tl.int64) * width + ds, key, mask=room)
        tl.store(values + base + length.to(tl.int64) * width + ds, value, mask=room)
        top = tl.sum(query * key.to(tl.float32))
        total = 1.0
        acc = value.to(tl.float32)

    size = tl.cdiv(tl.cdiv(length, BLOCK_T), tl.num_programs(1)) * BLOCK_T
    start = part * size
    for t in range(start, tl.minimum(start + size, length), BLOCK_T):
        ts = t + tl.arange(0, BLOCK_T)
        seen = ts < length
        place = base + ts[:, None].to(tl.int64) * width + ds[None, :]
        mask = seen[:, None] & inside[None, :]
        key_tile = tl.load(keys + place, mask=mask, other=0.0)
        value_tile = tl.load(values + place, mask=mask, other=0.0)
        scores = tl.sum(key_tile.to(tl.float32) * query[None, :], axis=1)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=0))
        weights = tl.exp(scores - higher)
        shrink = tl.exp(top - higher)
        acc = acc * shrink + tl.sum(weights[:, None] * value_tile.to(tl.float32), axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        top = higher

    out = row * tl.num_programs(1) + part
    tl.store(sums + out * width + ds, acc, mask=inside & ((part == 0) | (start < length)))
    tl.store(terms + out * 2 + 0, top)
    tl.store(terms + out * 2 + 1, total)


@triton.jit
def _join_kernel(sums, terms, h, width, SPLITS: tl.constexpr, BLOCK_D: tl.constexpr, OVERLAP: tl.constexpr):
    """The parts of a head to its output. The first is never empty, so the maximum is finite."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    ds = tl.arange(0, BLOCK_D)
    inside = ds < width
    parts = row * SPLITS + tl.arange(0, SPLITS)
    top = tl.load(terms + parts * 2)
    weights = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(weights * tl.load(terms + parts * 2 + 1), axis=0)
    there = (top > float("-inf"))[:, None] & inside[None, :]
    acc = tl.load(sums + parts[:, None] * width + ds[None, :], mask=there, other=0.0)
    out = tl.sum(weights[:, None] * acc, axis=0) / total
    tl.store(h + row * width + ds, out.to(h.dtype.element_ty), mask=inside)
