# mypy: disable-error-code="no-untyped-def"
"""The gradient of the normaliser, once per token: h and dh are read here and by nothing else for it."""

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
