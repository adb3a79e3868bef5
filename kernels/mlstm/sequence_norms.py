# mypy: disable-error-code="no-untyped-def"
"""What the normaliser needs of whole tokens, in float32 and parallel over chunks: its gradient once per
token, and what every chunk adds to n and to the gradient of n."""

import triton
import triton.language as tl

from kernels.mlstm.sequence_gates import chunk_span


@triton.jit(do_not_specialize=["g_sb", "S", "NC", "CH", "H"])
def norm_gradients_kernel(
    g_ptr, h_ptr, norms_ptr, dr_ptr, cu_ptr, first_ptr, owner_ptr, g_sb, g_st, g_sh, S, NC, CH, H,
    V: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """dr (chunks, H, L), the gradient of q n: minus the dot product of h with g = dh, over the norm, with the
    sign of q n, where it decides the norm; else and in padding 0 (KERNELS.md 1.4). A program has BT tokens.
    """
    tiles: tl.constexpr = L // BT
    pid = tl.program_id(0)
    chunk_head = (pid // tiles).to(tl.int64)
    chunk, head = pid // tiles // H, (pid // tiles) % H
    batch, _, start, length = chunk_span(chunk, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    if length <= 0:
        return
    t = pid % tiles * BT + tl.arange(0, BT)
    inside = (t < length)[:, None]
    g_ptr += tl.multiple_of(batch.to(tl.int64) * g_sb, ALIGN) + start * g_st + head.to(tl.int64) * g_sh
    h_ptr += ((batch.to(tl.int64) * S + start) * H + head) * V
    dot = tl.zeros([BT], tl.float32)
    for v0 in tl.static_range(0, V, BV):
        d = v0 + tl.arange(0, BV)
        mask = inside & (d < V)[None, :]
        g = tl.load(g_ptr + t[:, None] * g_st + d[None, :], mask=mask, other=0).to(tl.float32)
        h = tl.load(h_ptr + t[:, None] * (H * V) + d[None, :], mask=mask, other=0).to(tl.float32)
        dot += tl.sum(g * h, 1)
    at = chunk_head * L + t
    sign = tl.load(norms_ptr + CH.to(tl.int64) * L + at)
    tl.store(dr_ptr + at, tl.where(sign != 0, -dot * tl.load(norms_ptr + at) * sign, 0))


@triton.jit(do_not_specialize=["x_sb", "S", "NC", "CH", "H"])
def token_sums_kernel(
    x_ptr, rows_ptr, dr_ptr, sums_ptr, cu_ptr, first_ptr, owner_ptr, x_sb, x_st, x_sh, S, NC, CH, H,
    K: tl.constexpr, KP: tl.constexpr, L: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr,
    HAS_DR: tl.constexpr, VARLEN: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """sums (chunks, H, KP): of a chunk's tokens, weighted by a row (`sequence_gates`), by dr if HAS_DR."""
    tiles: tl.constexpr = KP // BK
    pid = tl.program_id(0)
    chunk_head = (pid // tiles).to(tl.int64)
    chunk, head = pid // tiles // H, (pid // tiles) % H
    batch, _, start, length = chunk_span(chunk, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    if length <= 0:
        return
    t, d = tl.arange(0, L), pid % tiles * BK + tl.arange(0, BK)
    x_ptr += tl.multiple_of(batch.to(tl.int64) * x_sb, ALIGN) + start * x_st + head.to(tl.int64) * x_sh
    mask = (t < length)[:, None] & (d < K)[None, :]
    x = tl.load(x_ptr + t[:, None] * x_st + d[None, :], mask=mask, other=0).to(tl.float32)
    at = chunk_head * L + t
    weight = tl.load(rows_ptr + ROW * CH.to(tl.int64) * L + at)
    if HAS_DR:
        weight *= tl.load(dr_ptr + at)
    tl.store(sums_ptr + chunk_head * KP + d, tl.sum(x * weight[:, None], 0))
