# mypy: disable-error-code="no-untyped-def"
"""The decode step's maps of several sequences on a GPU: tensor cores, and weights that are read once.

Vector by vector, a map of several takes as many instructions as weights times vectors, and soon more time
than memory does. Here a program owns BLOCK_N rows of the weight, as many as a tensor core takes, and
multiplies them by 4, 8 or 16 vectors at once. Its warps share the length of the rows, each with a product of
its own part, and their sums are added: so the weights of a program are in flight all at once, as they are for
one sequence (`skinny_triton`), and nobody waits for a neighbour. With SwiGLU an upper row and its lower one
lie side by side.

A sequence's result depends on no other: each has its own column, and absent ones are zeros. It is that of the
map of one sequence up to the order of sums.

In a chain of dependent launches (`kernels.dependent`) every program waits, and reads nothing before that but
weights: of rows longer than CHUNK the first two parts of that length.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.backends import interpreted
from kernels.dependent import dependent
from kernels.linear.skinny_triton import launch_add_norm, new_gates, present

BLOCK_N = 16
"""Rows of the weight a program: of a tensor core's tile."""

CHUNK_BYTES = 4096
"""Of a row at a time: 64 KiB of weights a program, and of vectors half that."""

AT_ONCE = 16
"""Vectors that a program takes at most: they fill as many registers as its weights."""

WARP_BYTES = 512
"""Of a row a warp: every lane reads 16."""


def launch_several(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_eps: float,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    glu: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as `kernels.linear.skinny_linear`, checked."""
    batch, width = x.shape
    x = x.contiguous()
    block_k = max(16, triton.next_power_of_2(width))
    if norm_weight is not None and block_k * x.element_size() > CHUNK_BYTES:
        # A program would not hold what it has to norm.
        _, x, gates = launch_add_norm(x, None, norm_weight, norm_eps, gate_weight, gate_bias)
        return launch_several(x, weight, None, norm_eps, None, None, glu, residual)[0], gates
    rows = weight.shape[0] // (2 if glu else 1)
    y = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    gates, num_gates = new_gates(x, gate_weight)
    chunk = min(block_k, CHUNK_BYTES // x.element_size())
    warps = max(1, chunk * x.element_size() // WARP_BYTES)
    most = min(AT_ONCE, max(4, triton.next_power_of_2(batch)))
    blocks = triton.cdiv(rows, BLOCK_N // (2 if glu else 1))
    _several_kernel[(blocks + num_gates, triton.cdiv(batch, most))](
        x, weight, *present(x, norm_weight, gate_weight, gate_bias, residual), y, *present(y, gates),
        batch, rows, num_gates, norm_eps,
        WIDTH=width, NORM=norm_weight is not None, GATE_BIAS=gate_bias is not None, GLU=glu,
        RESIDUAL=residual is not None,
        MOST=most, BLOCK_N=BLOCK_N, CHUNK=chunk, PARTS=warps,
        WIDE=interpreted(),  # which multiplies bfloat16 as integers
        num_warps=warps, num_stages=1, **dependent(x.device),
    )  # fmt: skip
    return y, gates


@triton.jit
def _normed(vectors, gain, width, eps, dtype):
    """RMSNorm of (PARTS, MOST, part of K) as the models do it: reduced in float32, cast, then weighted."""
    vectors = vectors.to(tl.float32)
    squares = tl.sum(tl.sum(vectors * vectors, axis=2), axis=0)
    vectors = (vectors * tl.rsqrt(squares / width + eps)[None, :, None]).to(dtype)
    return (vectors.to(tl.float32) * gain.to(tl.float32)).to(dtype)


@triton.jit
def _product(w, v, sums, WIDE: tl.constexpr):
    """sums (PARTS, BLOCK_N, MOST) and, part by part, the product of the rows w and the vectors v."""
    if WIDE:
        w, v = w.to(tl.float32), v.to(tl.float32)
    return tl.dot(w, tl.permute(v, (0, 2, 1)), sums, input_precision="ieee")


@triton.jit
def _here(w, WIDE: tl.constexpr):
    """w as it is, but not before this point of the program.

    The compiler would move what takes a way through shared memory as soon as it is there, some of it before
    the rest is requested: and would wait for the weights before it waits for the vectors.
    """
    if WIDE:
        return w
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [w], dtype=w.dtype, is_pure=False,
        pack=32 // w.dtype.primitive_bitwidth,
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch"])
def _several_kernel(
    x, weight, norm_weight, gate_weight, gate_bias, residual, y, gates,
    batch, rows, num_gates, eps,
    WIDTH: tl.constexpr, NORM: tl.constexpr, GATE_BIAS: tl.constexpr, GLU: tl.constexpr,
    RESIDUAL: tl.constexpr, MOST: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """With a norm CHUNK is no less than WIDTH."""
    if OVERLAP:
        gdc_launch_dependents()
    program = tl.program_id(0)
    PART: tl.constexpr = CHUNK // PARTS
    ks = tl.arange(0, PARTS)[:, None, None] * PART + tl.arange(0, PART)[None, None, :]
    sequences = tl.program_id(1).to(tl.int64) * MOST + tl.arange(0, MOST)
    wanted = sequences < batch
    vectors = x + sequences[None, :, None] * WIDTH + ks
    known = wanted[None, :, None] & (ks < WIDTH)
    dtype = x.dtype.element_ty
    if program >= num_gates:
        js = tl.arange(0, BLOCK_N)
        if GLU:
            outs = (program - num_gates) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            ns = (program - num_gates) * (BLOCK_N // 2) + js // 2
            in_rows = (ns < rows)[None, :, None]
            ns += js % 2 * rows
        else:
            outs = (program - num_gates) * BLOCK_N + js
            ns = outs
            in_rows = (ns < rows)[None, :, None]
        place = weight + ns.to(tl.int64)[None, :, None] * WIDTH + ks
        w = tl.load(place, mask=in_rows & (ks < WIDTH), other=0.0, eviction_policy="evict_first")
        w_ahead = w
        if WIDTH > CHUNK:
            left = in_rows & (ks < WIDTH - CHUNK)
            w_ahead = tl.load(place + CHUNK, mask=left, other=0.0, eviction_policy="evict_first")
        gain = ks
        if NORM:
            gain = tl.load(norm_weight + ks, mask=ks < WIDTH, other=0.0)
        if OVERLAP:
            gdc_wait()
        v = tl.load(vectors, mask=known, other=0.0)
        v_ahead = v
        if WIDTH > CHUNK:
            v_ahead = tl.load(vectors + CHUNK, mask=known & (ks < WIDTH - CHUNK), other=0.0)
        to = sequences[None, :] * rows + outs[:, None]
        there = (outs < rows)[:, None] & wanted[None, :]
        if RESIDUAL:
            kept = tl.load(residual + to, mask=there, other=0.0)
        if OVERLAP:
            tl.debug_barrier()  # the vectors are requested
        w = _here(w, WIDE)
        if NORM:
            v = _normed(v, _here(gain, WIDE), WIDTH, eps, dtype)
        sums = tl.zeros([PARTS, BLOCK_N, MOST], dtype=tl.float32)
        sums = _product(w, v, sums, WIDE)
        for start in range(CHUNK, WIDTH, CHUNK):
            w, v = _here(w_ahead, WIDE), v_ahead
            after = start + CHUNK
            left = in_rows & (ks < WIDTH - after)
            w_ahead = tl.load(place + after, mask=left, other=0.0, eviction_policy="evict_first")
            v_ahead = tl.load(vectors + after, mask=known & (ks < WIDTH - after), other=0.0)
            sums = _product(w, v, sums, WIDE)
        result = tl.sum(sums, axis=0).to(dtype).to(tl.float32)
        if GLU:
            pairs = tl.permute(tl.reshape(result, (BLOCK_N // 2, 2, MOST)), (0, 2, 1))
            result, up = tl.split(pairs)
            result = ((result * tl.sigmoid(result)).to(dtype).to(tl.float32) * up).to(dtype).to(tl.float32)
        if RESIDUAL:
            result += kept.to(tl.float32)
        tl.store(y + to, result.to(dtype), mask=there)
    else:
        gate = gate_weight + program * WIDTH + ks
        g = tl.load(gate, mask=ks < WIDTH, other=0.0).to(tl.float32)
        bias = tl.load(gate_bias + program).to(tl.float32) if GATE_BIAS else 0.0
        gains = ks
        if NORM:
            gains = tl.load(norm_weight + ks, mask=ks < WIDTH, other=0.0)
        if OVERLAP:
            gdc_wait()
        u = tl.load(vectors, mask=known, other=0.0)
        if NORM:
            u = _normed(u, gains, WIDTH, eps, dtype)
        value = tl.sum(tl.sum(u.to(tl.float32) * g, axis=2), axis=0) + bias
        for start in range(CHUNK, WIDTH, CHUNK):
            g = tl.load(gate + start, mask=ks < WIDTH - start, other=0.0).to(tl.float32)
            u = tl.load(vectors + start, mask=known & (ks < WIDTH - start), other=0.0)
            value += tl.sum(tl.sum(u.to(tl.float32) * g, axis=2), axis=0)
        tl.store(gates + sequences * num_gates + program, value, mask=wanted)
