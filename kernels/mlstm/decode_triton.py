# mypy: disable-error-code="no-untyped-def"
"""The decode step on a GPU: two kernels, three with the norm, that overlap.

The step is bound by reading and writing C once. What it computes per head (gates, m, n, the normaliser)
comes first in a tiny kernel: every program that owns a slice of V needs it, and n and m change in place, so
a program that read them late would read the new ones. The kernel for C is a programmatic dependent launch:
it requests its slice of C while the tiny kernel still runs, and waits for that one's four numbers only when
C has arrived. LayerNorm over V joins the slices of a head; it is a third kernel, launched the same way.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.backends import interpreted
from kernels.mlstm.reference import State

if TYPE_CHECKING:
    from kernels.mlstm.decode import StepOptions

TERMS = 4
"""Numbers a head that the second kernel needs: forget, write, read, direct (see `_gates_kernel`)."""

ELEMENTS = 16384
"""Of C a program: 128 a thread, the most that registers hold."""

MANY, FEW = 2048, 256
"""Programs: below the first a slice is halved to even out the last wave, below the second to fill the GPU."""


def launch_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, options: "StepOptions"
) -> Tensor:
    """Arguments as `mlstm_step`, checked; state and last dimensions contiguous."""
    C, n, m = state
    batch, heads, width = q.shape
    value_width, rows = v.shape[-1], batch * heads
    h = torch.empty(batch, heads, value_width, dtype=v.dtype, device=v.device)
    if h.numel() == 0:
        return h
    block_k = _block(width)
    block_v, warps = tile(rows, width, value_width, C.element_size())
    terms = torch.empty(rows, TERMS, dtype=torch.float32, device=v.device)
    overlap = overlaps(v.device)
    dependent = {"OVERLAP": True, "launch_pdl": True} if overlap else {"OVERLAP": False}
    _gates_kernel[(rows,)](
        q, k, i, f, n, m, terms,
        *q.stride()[:2], *k.stride()[:2], *i.stride(), *f.stride(),
        heads, width, width**-0.5, options.eps, options.gate_soft_cap or 1.0,
        SOFT_CAP=options.gate_soft_cap is not None, SIGMOID_INPUT=options.input_gate == "sigmoid",
        BLOCK_K=block_k, OVERLAP=overlap, num_warps=1,
    )  # fmt: skip
    normed = options.norm_weight is not None
    raw = torch.empty(h.shape, dtype=torch.float32, device=h.device) if normed else h
    gated, gate = options.ogate is not None, v if options.ogate is None else options.ogate
    _state_kernel[(rows * triton.cdiv(value_width, block_v),)](
        q, k, v, gate, C, terms, raw,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *gate.stride()[:2],
        heads, WIDTH=width, VALUE_WIDTH=value_width, OUTPUT_GATE=gated and not normed,
        BLOCK_K=block_k, BLOCK_V=block_v,
        num_warps=warps, **dependent,
    )  # fmt: skip
    if normed:
        block = _block(value_width)
        _norm_kernel[(rows,)](
            raw, options.norm_weight, gate, h, *gate.stride()[:2], heads, value_width, options.norm_eps,
            OUTPUT_GATE=gated, BLOCK_V=block, num_warps=4 if block > 128 else 1, **dependent,
        )  # fmt: skip
    return h


def tile(rows: int, width: int, value_width: int, itemsize: int) -> tuple[int, int]:
    """Columns of C a program and its warps: a program owns `width` rows of that many columns.

    The longer the rows, the better the memory moves them; but not fewer than FEW programs, and never less
    than 64 bytes a row. Rows not aligned to 16 bytes load element by element, hence more threads.
    """
    block_k = _block(width)
    narrowest = 64 // itemsize
    block = min(128, _block(value_width), max(16, ELEMENTS // block_k))
    if block > narrowest and rows * triton.cdiv(value_width, block) < MANY:
        block //= 2
    while block > narrowest and rows * triton.cdiv(value_width, block) < FEW:
        block //= 2
    size = block_k * block
    aligned = value_width * itemsize % 16 == 0
    return block, 8 if size > 8192 and not aligned else min(4, max(1, size // 1024))


def overlaps(device: torch.device) -> bool:
    """Programmatic dependent launch: from Hopper on."""
    return device.type == "cuda" and not interpreted() and torch.cuda.get_device_capability(device)[0] >= 9


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


@triton.jit
def _soft_cap(x, cap):
    """cap tanh(x / cap), by an exponential that cannot overflow."""
    e = tl.exp(-2.0 * tl.abs(x) / cap)
    y = cap * (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def _log_sigmoid(x):
    """min(x, 0) - log1p(exp(-|x|)); log1p by its series where 1 + e would lose the bits of e."""
    e = tl.exp(-tl.abs(x))
    series = e * (1.0 - e * (0.5 - e * (1.0 / 3.0 - e * 0.25)))
    return tl.minimum(x, 0.0) - tl.where(e < 0.015625, series, tl.log(1.0 + e))


@triton.jit
def _gates_kernel(
    q, k, i, f, n, m, terms,
    q_batch, q_head, k_batch, k_head, i_batch, i_head, f_batch, f_head,
    heads, width, scale, eps, cap,
    SOFT_CAP: tl.constexpr, SIGMOID_INPUT: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program a head: n and m to the next step, and what h = read q^T C + direct v and the next
    C = forget C + write k v^T need.

    One warp: m is read by all threads and written by one.
    """
    if OVERLAP:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    b, head = row // heads, row % heads
    ks = tl.arange(0, BLOCK_K)
    inside = ks < width
    queries = tl.load(q + b * q_batch + head * q_head + ks, mask=inside, other=0.0).to(tl.float32) * scale
    keys = tl.load(k + b * k_batch + head * k_head + ks, mask=inside, other=0.0).to(tl.float32)
    norm_state = tl.load(n + row * width + ks, mask=inside, other=0.0)
    log_i = tl.load(i + b * i_batch + head * i_head).to(tl.float32)
    log_f = tl.load(f + b * f_batch + head * f_head).to(tl.float32)
    m_old = tl.load(m + row)
    if SOFT_CAP:
        log_i = _soft_cap(log_i, cap)
        log_f = _soft_cap(log_f, cap)
    if SIGMOID_INPUT:
        log_i = _log_sigmoid(log_i)
    log_f = _log_sigmoid(log_f)

    m_new = tl.maximum(log_f + m_old, log_i)
    forget = tl.exp(log_f + m_old - m_new)
    write = tl.exp(log_i - m_new)
    norm_state = forget * norm_state + write * keys
    norm = tl.maximum(tl.abs(tl.sum(queries * norm_state)), tl.exp(-m_new)) + eps
    direct = write * tl.sum(queries * keys) / norm

    tl.store(n + row * width + ks, norm_state, mask=inside)
    tl.store(m + row, m_new)
    tl.store(terms + row * 4 + 0, forget)
    tl.store(terms + row * 4 + 1, write)
    tl.store(terms + row * 4 + 2, forget * scale / norm)
    tl.store(terms + row * 4 + 3, direct)


@triton.jit
def _state_kernel(
    q, k, v, ogate, C, terms, h,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, o_batch, o_head, heads,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, OUTPUT_GATE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program a slice of V of a head: all of K, so h needs no other program.

    The widths are constants: the rows of a slice are then one address and immediate offsets.
    """
    SLICES: tl.constexpr = (VALUE_WIDTH + BLOCK_V - 1) // BLOCK_V
    row = (tl.program_id(0) // SLICES).to(tl.int64)
    b, head = row // heads, row % heads
    ks = tl.arange(0, BLOCK_K)
    vs = (tl.program_id(0) % SLICES) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_k, in_v = ks < WIDTH, vs < VALUE_WIDTH
    inside = in_k[:, None] & in_v[None, :]
    block = C + row * (WIDTH * VALUE_WIDTH) + (ks[:, None] * VALUE_WIDTH + vs[None, :])
    queries = tl.load(q + b * q_batch + head * q_head + ks, mask=in_k, other=0.0)
    keys = tl.load(k + b * k_batch + head * k_head + ks, mask=in_k, other=0.0)
    values = tl.load(v + b * v_batch + head * v_head + vs, mask=in_v, other=0.0)
    if OUTPUT_GATE:
        gate = tl.load(ogate + b * o_batch + head * o_head + vs, mask=in_v, other=0.0)
    state = tl.load(block, mask=inside, other=0.0, eviction_policy="evict_first")
    # Every load is on its way before a value is touched: a conversion in between would wait for its own.
    queries, keys, values = queries.to(tl.float32), keys.to(tl.float32), values.to(tl.float32)
    state = state.to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    forget = tl.load(terms + row * 4 + 0)
    write = tl.load(terms + row * 4 + 1)
    read = tl.load(terms + row * 4 + 2)
    direct = tl.load(terms + row * 4 + 3)

    out = read * tl.sum(queries[:, None] * state, axis=0) + direct * values
    state = forget * state + (write * keys)[:, None] * values[None, :]
    tl.store(block, state.to(C.dtype.element_ty), mask=inside, eviction_policy="evict_first")
    if OUTPUT_GATE:
        out *= tl.sigmoid(gate.to(tl.float32))
    tl.store(h + row * VALUE_WIDTH + vs, out.to(h.dtype.element_ty), mask=in_v)


@triton.jit
def _norm_kernel(
    raw, weight, ogate, h, o_batch, o_head, heads, value_width, eps,
    OUTPUT_GATE: tl.constexpr, BLOCK_V: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program a head: LayerNorm over V, times the weight, times the output gate."""
    row = tl.program_id(0).to(tl.int64)
    b, head = row // heads, row % heads
    vs = tl.arange(0, BLOCK_V)
    inside = vs < value_width
    gain = tl.load(weight + head * value_width + vs, mask=inside, other=0.0).to(tl.float32)
    if OUTPUT_GATE:
        gate = tl.load(ogate + b * o_batch + head * o_head + vs, mask=inside, other=0.0).to(tl.float32)
        gain *= tl.sigmoid(gate)
    if OVERLAP:
        gdc_wait()
    x = tl.load(raw + row * value_width + vs, mask=inside, other=0.0)
    x = tl.where(inside, x - tl.sum(x) / value_width, 0.0)
    x *= tl.rsqrt(tl.sum(x * x) / value_width + eps)
    dtype = h.dtype.element_ty
    tl.store(h + row * value_width + vs, (x.to(dtype).to(tl.float32) * gain).to(dtype), mask=inside)
