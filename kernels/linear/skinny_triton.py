# mypy: disable-error-code="no-untyped-def"
"""The decode step's maps on a GPU: memory is asked for the weights before anything else is done.

A program of the map owns a few rows of the weight and all of their length, so that it has them all in flight
at once; it needs no neighbour. Every kernel is a programmatic dependent launch: it requests its weights while
the kernel before still runs, and waits for that one's result only when it needs it. So the memory has work
from the first kernel of a step to the last. A kernel that writes waits before it does: what it overwrites may
still be read. Why such a chain is sound, and what a kernel of it must keep to, is said in
`kernels.dependent`: every program of every kernel here waits, and reads nothing before that but
weights.

A grid has 2^31 - 1 programs along its first dimension and 65,535 along each other: the tokens of a prefill,
which may be more, lie along the first. Of `skinny_linear`, which is for few, they are the second: a program
then lies beside those of its own vector.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.dependent import dependent

ELEMENTS, WARP_ELEMENTS, MOST_WARPS = 4096, 2048, 8
"""Of the weight a program, or one row (with SwiGLU a pair) where that is more; of that a warp, 64 a thread,
4 KiB of bfloat16; and warps a program."""

WARPS = 4
"""Of the kernels that read no weight."""

TOKENS, SEVERAL = 8, 1024
"""Rows that a program of `add_norm` takes one after the other, from so many rows on: the weights of the gates
stay in its registers meanwhile."""

READ_OUT = 2048
"""Logits of a program of `read_out`."""


def new_gates(x: Tensor, gate_weight: Tensor | None) -> tuple[Tensor | None, int]:
    """For the gates of x to be written to, and their number."""
    if gate_weight is None:
        return None, 0
    return torch.empty(len(x), len(gate_weight), dtype=torch.float32, device=x.device), len(gate_weight)


def present(absent: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """What a kernel is given for them: for one that is not there `absent`, which is never read."""
    return [absent if tensor is None else tensor for tensor in tensors]


def launch_linear(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_eps: float,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    glu: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as `skinny_linear`, checked."""
    batch, width = x.shape
    rows = weight.shape[0] // (2 if glu else 1)
    y = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    gates, num_gates = new_gates(x, gate_weight)
    block_n, block_k, warps = tile(width, glu)
    x = x.contiguous()
    blocks = triton.cdiv(rows, block_n)
    _linear_kernel[(blocks + num_gates, batch)](
        x, weight, *present(x, norm_weight, gate_weight, gate_bias, residual), y, *present(y, gates),
        rows, num_gates, norm_eps,
        WIDTH=width, NORM=norm_weight is not None, GATE_BIAS=gate_bias is not None, GLU=glu,
        RESIDUAL=residual is not None,
        BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, num_stages=1, **dependent(x.device),
    )  # fmt: skip
    return y, gates


def tile(width: int, glu: bool) -> tuple[int, int, int]:
    """Of a map of rows that long: rows a program, with `glu` pairs, their length in a program, and warps."""
    side_by_side = 2 if glu else 1
    block_k = triton.next_power_of_2(width)
    block_n = max(1, ELEMENTS // block_k // side_by_side)
    elements = block_n * block_k * side_by_side
    return block_n, block_k, max(1, min(MOST_WARPS, elements // WARP_ELEMENTS))


def launch_add_norm(
    x: Tensor,
    change: Tensor | None,
    norm_weight: Tensor,
    norm_eps: float,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Arguments as `add_norm`."""
    batch, width = x.shape
    x = x.contiguous()
    total = x if change is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    gates, num_gates = new_gates(x, gate_weight)
    few = batch < SEVERAL
    _add_norm_kernel[(triton.cdiv(batch, 1 if few else TOKENS),)](
        x, x if change is None else change.contiguous(), norm_weight, *present(x, gate_weight, gate_bias),
        total, normed, *present(normed, gates), batch, num_gates, norm_eps,
        WIDTH=width, CHANGE=change is not None, GATES=triton.next_power_of_2(num_gates) if num_gates else 0,
        GATE_BIAS=gate_bias is not None, TOKENS=1 if few else TOKENS,
        BLOCK_K=triton.next_power_of_2(width), num_warps=8 if num_gates else WARPS, **dependent(x.device),
    )  # fmt: skip
    return total, normed, gates


def launch_swiglu(x: Tensor) -> Tensor:
    """Arguments as `swiglu`."""
    batch, rows = x.shape[0], x.shape[1] // 2
    y = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(rows))
    grid = (batch, triton.cdiv(rows, block))
    _swiglu_kernel[grid](x.contiguous(), y, rows, BLOCK_N=block, num_warps=WARPS, **dependent(x.device))
    return y


def launch_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Arguments as `rotate_pairs`."""
    batch, heads, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_d = max(16, triton.next_power_of_2(width // 2))
    block_h = min(triton.next_power_of_2(heads), max(1, 2048 // block_d))
    _rotate_kernel[(batch, triton.cdiv(heads, block_h))](
        x, cos.contiguous(), sin.contiguous(), y, *x.stride()[:2], heads, width // 2,
        BLOCK_H=block_h, BLOCK_D=block_d, num_warps=WARPS, **dependent(x.device),
    )  # fmt: skip
    return y


def launch_read_out(
    x: Tensor, soft_cap: float | None, logits: Tensor, tokens: Tensor, arrivals: Tensor
) -> None:
    """Arguments as `read_out`."""
    batch, width = x.shape
    parts = triton.cdiv(width, READ_OUT)
    best = torch.empty(batch, parts, dtype=torch.float32, device=x.device)
    where = torch.empty(batch, parts, dtype=torch.int32, device=x.device)
    _read_out_kernel[(batch, parts)](
        x, logits, tokens, best, where, arrivals, width, soft_cap or 1.0,
        SOFT_CAP=soft_cap is not None, BLOCK=READ_OUT, PARTS=triton.next_power_of_2(parts),
        num_warps=WARPS, **dependent(x.device),
    )  # fmt: skip


@triton.jit
def _normed(row, weight, width, eps, dtype):
    """RMSNorm as the models do it: reduced in float32, cast, then weighted."""
    row = row * tl.rsqrt(tl.sum(row * row, axis=0) / width + eps)
    return (row.to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def _linear_kernel(
    x, weight, norm_weight, gate_weight, gate_bias, residual, y, gates,
    rows, num_gates, eps,
    WIDTH: tl.constexpr, NORM: tl.constexpr, GATE_BIAS: tl.constexpr, GLU: tl.constexpr,
    RESIDUAL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
    program, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    inside = ks < WIDTH
    dtype = x.dtype.element_ty
    gain = tl.zeros([BLOCK_K], dtype=tl.float32)
    if NORM:
        gain = tl.load(norm_weight + ks, mask=inside, other=0.0).to(tl.float32)
    if program >= num_gates:
        ns = ((program - num_gates) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        in_rows = ns < rows
        there = in_rows[:, None] & inside[None, :]
        place = weight + ns[:, None] * WIDTH + ks[None, :]
        w = tl.load(place, mask=there, other=0.0, eviction_policy="evict_first")
        if GLU:
            place += rows.to(tl.int64) * WIDTH
            lower = tl.load(place, mask=there, other=0.0, eviction_policy="evict_first")
        if OVERLAP:
            gdc_wait()
        row = tl.load(x + sequence * WIDTH + ks, mask=inside, other=0.0).to(tl.float32)
        out = sequence * rows + ns
        if RESIDUAL:
            kept = tl.load(residual + out, mask=in_rows, other=0.0)
        if NORM:
            row = _normed(row, gain, WIDTH, eps, dtype)
        result = tl.sum(w.to(tl.float32) * row[None, :], axis=1).to(dtype).to(tl.float32)
        if GLU:
            up = tl.sum(lower.to(tl.float32) * row[None, :], axis=1).to(dtype).to(tl.float32)
            result = ((result * tl.sigmoid(result)).to(dtype).to(tl.float32) * up).to(dtype).to(tl.float32)
        if RESIDUAL:
            result += kept.to(tl.float32)
        tl.store(y + out, result.to(dtype), mask=in_rows)
    else:
        gate = program
        v = tl.load(gate_weight + gate * WIDTH + ks, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(gate_bias + gate).to(tl.float32) if GATE_BIAS else 0.0
        if OVERLAP:
            gdc_wait()
        row = tl.load(x + sequence * WIDTH + ks, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            row = _normed(row, gain, WIDTH, eps, dtype)
        tl.store(gates + sequence * num_gates + gate, tl.sum(v * row, axis=0) + bias)


@triton.jit(do_not_specialize=["rows"])
def _add_norm_kernel(
    x, change, norm_weight, gate_weight, gate_bias, total, normed, gates, rows, num_gates, eps,
    WIDTH: tl.constexpr, CHANGE: tl.constexpr, GATES: tl.constexpr, GATE_BIAS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program so many rows, one after the other. GATES is `num_gates`, rounded up to a power of two."""
    if OVERLAP:
        gdc_launch_dependents()
    ks = tl.arange(0, BLOCK_K)
    inside = ks < WIDTH
    dtype = x.dtype.element_ty
    gain = tl.load(norm_weight + ks, mask=inside, other=0.0)
    if GATES:
        gs = tl.arange(0, GATES)
        wanted = (gs < num_gates)[:, None] & inside[None, :]
        v = tl.load(gate_weight + gs[:, None] * WIDTH + ks[None, :], mask=wanted, other=0.0)
        bias = tl.load(gate_bias + gs, mask=gs < num_gates, other=0.0) if GATE_BIAS else 0.0
    if OVERLAP:
        gdc_wait()
    for t in range(TOKENS):
        token = tl.program_id(0).to(tl.int64) * TOKENS + t
        there = inside & (token < rows)
        place = token * WIDTH + ks
        row = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        if CHANGE:
            row += tl.load(change + place, mask=there, other=0.0).to(tl.float32)
            row = row.to(dtype).to(tl.float32)
            tl.store(total + place, row.to(dtype), mask=there)
        row = _normed(row, gain, WIDTH, eps, dtype)
        tl.store(normed + place, row.to(dtype), mask=there)
        if GATES:
            value = tl.sum(v.to(tl.float32) * row[None, :], axis=1) + bias
            tl.store(gates + token * num_gates + gs, value, mask=(gs < num_gates) & (token < rows))


@triton.jit
def _swiglu_kernel(x, y, rows, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    sequence = tl.program_id(0).to(tl.int64)
    ns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = ns < rows
    gate = tl.load(x + sequence * 2 * rows + ns, mask=there, other=0.0).to(tl.float32)
    up = tl.load(x + sequence * 2 * rows + rows + ns, mask=there, other=0.0).to(tl.float32)
    dtype = y.dtype.element_ty
    tl.store(
        y + sequence * rows + ns,
        ((gate * tl.sigmoid(gate)).to(dtype).to(tl.float32) * up).to(dtype),
        mask=there,
    )


@triton.jit
def _rotate_kernel(
    x, cos, sin, y, x_sequence, x_head, heads, half,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    sequence = tl.program_id(0).to(tl.int64)
    hs = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    ds = tl.arange(0, BLOCK_D)
    in_d = ds < half
    there = (hs < heads) & in_d[None, :]
    source = x + sequence * x_sequence + hs * x_head + ds[None, :]
    target = y + (sequence * heads + hs) * 2 * half + ds[None, :]
    one = tl.load(source, mask=there, other=0.0).to(tl.float32)
    two = tl.load(source + half, mask=there, other=0.0).to(tl.float32)
    c = tl.load(cos + sequence * half + ds, mask=in_d, other=0.0)[None, :]
    s = tl.load(sin + sequence * half + ds, mask=in_d, other=0.0)[None, :]
    dtype = y.dtype.element_ty
    tl.store(target, (one * c - two * s).to(dtype), mask=there)
    tl.store(target + half, (two * c + one * s).to(dtype), mask=there)


@triton.jit
def _read_out_kernel(
    x, logits, tokens, best, where, arrivals, width, cap,
    SOFT_CAP: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program a part of a sequence's logits; the one that arrives last finds the best of the best."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    part, parts, sequence = tl.program_id(1), tl.num_programs(1), tl.program_id(0).to(tl.int64)
    dtype = x.dtype.element_ty
    ns = part * BLOCK + tl.arange(0, BLOCK)
    there = ns < width
    value = tl.load(x + sequence * width + ns, mask=there, other=0.0).to(tl.float32)
    if SOFT_CAP:
        # tanh by the sigmoid, which every version of Triton has.
        value = (cap * (2.0 * tl.sigmoid(2.0 * value / cap) - 1.0)).to(dtype).to(tl.float32)
    tl.store(logits + sequence * width + ns, value, mask=there)
    value = tl.where(there, value, float("-inf"))
    top = tl.max(value, axis=0)
    tl.store(best + sequence * parts + part, top)
    tl.store(where + sequence * parts + part, tl.min(tl.where(value == top, ns, width - 1), axis=0))
    tl.debug_barrier()
    before = tl.atomic_add(arrivals + sequence, 1, sem="acq_rel")
    if before == parts - 1:
        tl.store(arrivals + sequence, 0)
        ps = tl.arange(0, PARTS)
        tops = tl.load(
            best + sequence * parts + ps, mask=ps < parts, other=float("-inf"), cache_modifier=".cg"
        )
        places = tl.load(where + sequence * parts + ps, mask=ps < parts, other=0, cache_modifier=".cg")
        first = tl.min(tl.where(tops == tl.max(tops, axis=0), places, width - 1), axis=0)
        tl.store(tokens + sequence, first.to(tl.int64))
