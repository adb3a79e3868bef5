# mypy: disable-error-code="no-untyped-def"
"""The decode step on a GPU: one kernel, bound by reading and writing C once.

A program owns a slice of V of a head, and all of K: it needs no other program for its part of h and of C. It
requests all of its slice at once, as it lies in memory, and then widens, uses and stores it part by part.
What a head has once - gates, m, n, the normaliser - every program computes for itself, from a few KiB.

The new n and m may be written only when no program reads the old ones any more, and LayerNorm over V needs
all slices: both are done by the program of a head that arrives last. Programs count in `arrivals`; the last
one puts the count back to zero. Which one it is changes nothing in what is computed. Without LayerNorm a
program counts as soon as it has used n and m, while C is on its way. With it, what the last one reads is
written before: a barrier, then an atomic that releases and acquires, behind the stores of C (before them it
was slower).

A link in a chain of dependent launches (`kernels.dependent`, which says why that is sound) requests C, most
of what it reads, before it waits for the kernel before. That asks for a kernel between two steps on one state
that is no dependent launch.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.dependent import dependent
from kernels.mlstm.reference import State

if TYPE_CHECKING:
    from kernels.mlstm.decode import StepOptions

ELEMENTS = 16384
"""Of C a program, at most: with a float32 state 128 a thread, the most that registers hold."""

FEW = 256
"""Programs: below these a slice is halved, to fill the GPU."""

AT_ONCE = 512
"""Programs of 4 warps that share the GPU, with a bfloat16 state: 4 a multiprocessor of an H100."""

PARTS = 8
"""Of a slice, by rows, at most."""


def launch_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: State,
    options: "StepOptions",
    arrivals: Tensor | None,
    chained: bool,
) -> Tensor:
    """Arguments as `mlstm_step`, checked; state and last dimensions contiguous."""
    C, n, m = state
    batch, heads, width = q.shape
    value_width, rows = v.shape[-1], batch * heads
    h = torch.empty(batch, heads, value_width, dtype=v.dtype, device=v.device)
    if h.numel() == 0:
        return h
    normed, gated = options.norm_weight is not None, options.ogate is not None
    block_v, warps, part = tile(rows, width, value_width, C.element_size(), normed)
    launch = dependent(v.device, chained)
    if arrivals is None:
        arrivals = torch.zeros(rows, dtype=torch.int32, device=v.device)
    gate = v if options.ogate is None else options.ogate
    raw = torch.empty(h.shape, dtype=torch.float32, device=h.device) if normed else h
    step_kernel[(rows * triton.cdiv(value_width, block_v),)](
        q, k, v, i, f, gate, v if options.norm_weight is None else options.norm_weight,
        C, n, m, raw, h, arrivals,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *i.stride(), *f.stride(), *gate.stride()[:2],
        width**-0.5, options.eps, options.gate_soft_cap or 1.0, options.norm_eps,
        HEADS=heads, WIDTH=width, VALUE_WIDTH=value_width,
        SOFT_CAP=options.gate_soft_cap is not None, SIGMOID_INPUT=options.input_gate == "sigmoid",
        NORM=normed, OUTPUT_GATE=gated,
        BLOCK_K=_block(width), BLOCK_V=block_v, BLOCK_H=_block(value_width), ROWS=part,
        num_warps=warps, **launch,
    )  # fmt: skip
    return h


def tile(rows: int, width: int, value_width: int, itemsize: int, normed: bool) -> tuple[int, int, int]:
    """Columns of C a program, its warps, rows of a part: a program owns `width` rows of that many columns.

    The longer the rows, the better the memory moves them; but not fewer than FEW programs, and never less
    than 64 bytes a row. Rows not aligned to 16 bytes load element by element, hence more threads. The warps
    of a bfloat16 state are those that were fastest. Every thread has 16 bytes of a part.
    """
    block_k = _block(width)
    block = min(128, _block(value_width), max(16, ELEMENTS // block_k))
    while block > 64 // itemsize and rows * triton.cdiv(value_width, block) < FEW:
        block //= 2
    size, programs = block_k * block, rows * triton.cdiv(value_width, block)
    warps = min(4, max(1, size // 2048))
    unaligned = value_width * itemsize % 16 != 0
    several_waves = itemsize == 2 and not normed and programs > AT_ONCE
    lonely = itemsize == 2 and normed and programs < FEW
    if (size > 8192 and (unaligned or several_waves)) or (size > 4096 and lonely):
        warps = 8
    return block, warps, min(block_k, max(block_k // PARTS, warps * 32 * 16 // (itemsize * block)))


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
def _column(x, at, WIDTH: tl.constexpr):
    """One value a row, from L1 where the whole vector was read before."""
    return tl.load(x + at, mask=at < WIDTH, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _sums(a, b, c, d):
    """Two sums at once."""
    return a + c, b + d


@triton.jit
def step_kernel(
    q, k, v, i, f, ogate, weight, C, n, m, raw, h, arrivals,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, i_batch, i_head, f_batch, f_head, o_batch, o_head,
    scale, eps, cap, norm_eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr, SIGMOID_INPUT: tl.constexpr, NORM: tl.constexpr, OUTPUT_GATE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """h = read q^T C + direct v and the next C = forget C + write k v^T, for one slice of V of one head.

    The widths are constants: the rows of a slice are then one address and immediate offsets.
    """
    if OVERLAP:
        gdc_launch_dependents()
    SLICES: tl.constexpr = (VALUE_WIDTH + BLOCK_V - 1) // BLOCK_V
    PARTS: tl.constexpr = BLOCK_K // ROWS
    row = (tl.program_id(0) // SLICES).to(tl.int64)
    b, head = row // HEADS, row % HEADS
    rs = tl.arange(0, ROWS)
    vs = (tl.program_id(0) % SLICES) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_v = vs < VALUE_WIDTH
    block = C + row * (WIDTH * VALUE_WIDTH) + (rs[:, None] * VALUE_WIDTH + vs[None, :])
    parts = ()
    for part in tl.static_range(PARTS):
        inside = (part * ROWS + rs < WIDTH)[:, None] & in_v[None, :]
        here = block + part * ROWS * VALUE_WIDTH
        parts += (tl.load(here, mask=inside, other=0.0, eviction_policy="evict_first"),)  # type: ignore[assignment]
    if OVERLAP:
        gdc_wait()
    values = tl.load(v + b * v_batch + head * v_head + vs, mask=in_v, other=0.0)
    # The assembler would issue these loads behind what it computes of the next ones, when those have arrived.
    tl.debug_barrier()
    ks = tl.arange(0, BLOCK_K)
    in_k = ks < WIDTH
    of_q, of_k = q + b * q_batch + head * q_head, k + b * k_batch + head * k_head
    queries = tl.load(of_q + ks, mask=in_k, other=0.0)
    keys = tl.load(of_k + ks, mask=in_k, other=0.0)
    norm_state = tl.load(n + row * WIDTH + ks, mask=in_k, other=0.0)
    log_i = tl.load(i + b * i_batch + head * i_head)
    log_f = tl.load(f + b * f_batch + head * f_head)
    m_old = tl.load(m + row)
    queries, keys, values = queries.to(tl.float32), keys.to(tl.float32), values.to(tl.float32)
    log_i, log_f = log_i.to(tl.float32), log_f.to(tl.float32)

    if SOFT_CAP:
        log_i = _soft_cap(log_i, cap)
        log_f = _soft_cap(log_f, cap)
    if SIGMOID_INPUT:
        log_i = _log_sigmoid(log_i)
    log_f = _log_sigmoid(log_f)
    m_new = tl.maximum(log_f + m_old, log_i)
    forget = tl.exp(log_f + m_old - m_new)
    write = tl.exp(log_i - m_new)
    of_state, of_key = tl.reduce((queries * norm_state, queries * keys), 0, _sums)
    norm_state = forget * norm_state + write * keys
    norm = tl.maximum(tl.abs(scale * (forget * of_state + write * of_key)), tl.exp(-m_new)) + eps
    read = forget * scale / norm
    direct = write * scale * of_key / norm
    if not NORM:
        # Relaxed: nothing written is passed on, and what must not change under its readers was used above.
        tl.debug_barrier()
        before = tl.atomic_add(arrivals + row, 1, sem="relaxed")

    total = tl.zeros([ROWS, BLOCK_V], tl.float32)
    written = (write * values)[None, :]
    for part in tl.static_range(PARTS):
        at = part * ROWS + rs
        state = parts[part].to(tl.float32)  # type: ignore[misc, var-annotated]
        total += _column(of_q, at, WIDTH) * state
        state = forget * state + _column(of_k, at, WIDTH) * written
        inside = (at < WIDTH)[:, None] & in_v[None, :]
        here = block + part * ROWS * VALUE_WIDTH
        tl.store(here, state.to(C.dtype.element_ty), mask=inside, eviction_policy="evict_first")
    out = read * tl.sum(total, axis=0) + direct * values
    if NORM:
        tl.store(raw + row * VALUE_WIDTH + vs, out, mask=in_v)
        tl.debug_barrier()
        before = tl.atomic_add(arrivals + row, 1, sem="acq_rel")
    else:
        if OUTPUT_GATE:
            gate = tl.load(ogate + b * o_batch + head * o_head + vs, mask=in_v, other=0.0)
            out *= tl.sigmoid(gate.to(tl.float32))
        tl.store(h + row * VALUE_WIDTH + vs, out.to(h.dtype.element_ty), mask=in_v)
    if before == SLICES - 1:
        tl.store(arrivals + row, 0)
        tl.store(n + row * WIDTH + ks, norm_state, mask=in_k)
        tl.store(m + row, m_new)
        if NORM:
            _norm_head(
                raw + row * VALUE_WIDTH, weight + head * VALUE_WIDTH, ogate + b * o_batch + head * o_head,
                h + row * VALUE_WIDTH, norm_eps, VALUE_WIDTH, OUTPUT_GATE, BLOCK_H,
            )  # fmt: skip


@triton.jit
def _norm_head(
    raw, weight, ogate, h, eps, VALUE_WIDTH: tl.constexpr, OUTPUT_GATE: tl.constexpr, BLOCK_H: tl.constexpr
):
    """LayerNorm over V, times the weight, times the output gate. Other programs wrote `raw`: not from L1."""
    vs = tl.arange(0, BLOCK_H)
    inside = vs < VALUE_WIDTH
    x = tl.load(raw + vs, mask=inside, other=0.0, cache_modifier=".cg")
    gain = tl.load(weight + vs, mask=inside, other=0.0)
    if OUTPUT_GATE:
        gate = tl.load(ogate + vs, mask=inside, other=0.0)
    gain = gain.to(tl.float32)
    if OUTPUT_GATE:
        gain *= tl.sigmoid(gate.to(tl.float32))
    x = tl.where(inside, x - tl.sum(x) / VALUE_WIDTH, 0.0)
    x *= tl.rsqrt(tl.sum(x * x) / VALUE_WIDTH + eps)
    dtype = h.dtype.element_ty
    tl.store(h + vs, (x.to(dtype).to(tl.float32) * gain).to(dtype), mask=inside)
