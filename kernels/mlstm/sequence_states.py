"""The states at chunk boundaries: the only part of the sequence that must be computed in order.

One program owns a tile (BK, BV) of C for one sequence and head, keeps it in float32 registers and walks over the
chunks, forward for C and n, backward for their gradients. It stores each boundary once, in the dtype of the products
that read it; all else (`sequence_chunks`) is then parallel over chunks. A chunk is taken in blocks of BT tokens, and
the one number a step needs that no pipeline can prefetch, the decay of a chunk, is loaded a step ahead.

n is C with values 1, but h divides by q n, so n must not be rounded to 16 bits as C is: it is kept as PARTS columns,
the least that the matrix units take, whose sum it is. Three 16-bit columns hold a float32, and a product with all of
them costs nothing beside the product with C. Gradients here lack the factor 1 / sqrt(K), which all that read them
apply at their end.
"""

import triton
import triton.language as tl

from kernels.mlstm.sequence_gates import sequence_span

PARTS = tl.constexpr(16)


@triton.jit
def in_parts(x, like):
    """x, a column of float32, as PARTS columns in the dtype of `like` with the sum x."""
    part = tl.arange(0, PARTS)[None, :]
    high = x.to(like.dtype)
    rest = x - high.to(tl.float32)
    middle = rest.to(like.dtype)
    low = (rest - middle.to(tl.float32)).to(like.dtype)
    return tl.where(part == 0, high, tl.where(part == 1, middle, tl.where(part == 2, low, 0.0))).to(like.dtype)


@triton.jit(do_not_specialize=["k_sb", "v_sb", "S", "NC", "CH", "H"])
def states_kernel(
    k_ptr, v_ptr, rows_ptr, bounds_ptr, C_ptr, n_ptr, C0_ptr, n0_ptr, C1_ptr, n1_ptr, cu_ptr, first_ptr,
    k_sb, k_st, k_sh, v_sb, v_st, v_sh, S, NC, CH, H,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    HAS_START: tl.constexpr, HAS_END: tl.constexpr, VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """C (chunks, H, KP, VP) and n (chunks, H, KP, PARTS) at the start of every chunk; C1, n1 of the sequence's end."""
    tiles: tl.constexpr = (KP // BK) * (VP // BV)
    pid = tl.program_id(0)
    head, sequence = (pid // tiles) % H, pid // tiles // H
    tile = pid % tiles
    k0, v0 = tile // (VP // BV) * BK, tile % (VP // BV) * BV
    batch, start, length, first = sequence_span(sequence, cu_ptr, first_ptr, S, NC, VARLEN)
    d_k, d_v = k0 + tl.arange(0, BK), v0 + tl.arange(0, BV)
    t, part = tl.arange(0, BT), tl.arange(0, PARTS)
    k_ptr += tl.multiple_of(batch.to(tl.int64) * k_sb, ALIGN) + head * k_sh
    v_ptr += tl.multiple_of(batch.to(tl.int64) * v_sb, ALIGN) + head * v_sh
    k_in, v_in = (d_k < K)[:, None], (d_v < V)[None, :]
    plane = CH.to(tl.int64) * L
    C = tl.zeros([BK, BV], tl.float32)
    n = tl.zeros([BK, PARTS], tl.float32)
    at = (sequence * H + head).to(tl.int64)
    if HAS_START:
        C += tl.load(C0_ptr + (at * K + d_k[:, None]) * V + d_v[None, :], mask=k_in & v_in, other=0)
        n += tl.load(n0_ptr + at * K + d_k[:, None] + 0 * part[None, :], mask=k_in & (part == 0)[None, :], other=0)
    blocks: tl.constexpr = L // BT
    steps = tl.cdiv(length, L) * blocks
    next_keep = tl.load(bounds_ptr + first * H + head, mask=steps > 0, other=0)
    for step in range(0, steps):
        chunk = (first + step // blocks).to(tl.int64) * H + head
        keep = next_keep
        following = tl.minimum(step + 1, steps - 1) // blocks
        next_keep = tl.load(bounds_ptr + (first + following).to(tl.int64) * H + head)
        token = start + step * BT
        inside = (step * BT + t < length)[:, None]
        k = tl.load(k_ptr + token * k_st + t[:, None] * k_st + d_k[None, :], mask=inside & (d_k < K)[None, :], other=0)
        v = tl.load(v_ptr + token * v_st + t[:, None] * v_st + d_v[None, :], mask=inside & v_in, other=0)
        weight = tl.load(rows_ptr + 3 * plane + chunk * L + (step % blocks) * BT + t)
        if step % blocks == 0:
            tl.store(C_ptr + (chunk * KP + d_k[:, None]) * VP + d_v[None, :], C.to(C_ptr.dtype.element_ty))
            if v0 == 0:
                n_at = n_ptr + (chunk * KP + d_k[:, None]) * PARTS + part[None, :]
                tl.store(n_at, in_parts(tl.sum(n, 1)[:, None], k))
            C *= keep
            n *= keep
        k_t = tl.trans(k)
        C = tl.dot(k_t, (v * weight[:, None]).to(v.dtype), C, input_precision=PRECISION)
        n = tl.dot(k_t, in_parts(weight[:, None], k), n, input_precision=PRECISION)
    if HAS_END:
        tl.store(C1_ptr + (at * K + d_k[:, None]) * V + d_v[None, :], C, mask=k_in & v_in)
        tl.store(n1_ptr + at * K + d_k, tl.sum(n, 1), mask=(d_k < K) & (v0 == 0))


@triton.jit(do_not_specialize=["q_sb", "g_sb", "S", "NC", "CH", "H", "scale"])
def state_gradients_kernel(
    q_ptr, g_ptr, h_ptr, rows_ptr, bounds_ptr, norms_ptr,
    dC_ptr, dn_ptr, dr_ptr, dC1_ptr, dn1_ptr, dC0_ptr, dn0_ptr, cu_ptr, first_ptr,
    q_sb, q_st, q_sh, g_sb, g_st, g_sh, S, NC, CH, H, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    EXACT: tl.constexpr, HAS_START: tl.constexpr, HAS_END: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From g = dh: gradients of the states at the END of every chunk, dC (chunks, H, KP, VP) and dn.

    The products h g, whose sum over V enters dn, are partial sums over the program's slice of V, and everything that
    is linear in them stays partial: dr (slices, chunks, H, L), dn (slices, chunks, H, KP).
    """
    tiles: tl.constexpr = (KP // BK) * (VP // BV)
    pid = tl.program_id(0)
    head, sequence = (pid // tiles) % H, pid // tiles // H
    tile = pid % tiles
    k0, slice_v = tile // (VP // BV) * BK, tile % (VP // BV)
    batch, start, length, first = sequence_span(sequence, cu_ptr, first_ptr, S, NC, VARLEN)
    d_k, d_v = k0 + tl.arange(0, BK), slice_v * BV + tl.arange(0, BV)
    t, part = tl.arange(0, BT), tl.arange(0, PARTS)
    q_ptr += tl.multiple_of(batch.to(tl.int64) * q_sb, ALIGN) + head * q_sh
    g_ptr += tl.multiple_of(batch.to(tl.int64) * g_sb, ALIGN) + head * g_sh
    h_ptr += (batch.to(tl.int64) * S * H + head) * V
    k_in, v_in = (d_k < K)[:, None], (d_v < V)[None, :]
    plane = CH.to(tl.int64)
    dC = tl.zeros([BK, BV], tl.float32)
    dn = tl.zeros([BK, PARTS], tl.float32)
    at = (sequence * H + head).to(tl.int64)
    if HAS_END:
        dC += tl.load(dC1_ptr + (at * K + d_k[:, None]) * V + d_v[None, :], mask=k_in & v_in, other=0) / scale
        dn1_at = dn1_ptr + at * K + d_k[:, None] + 0 * part[None, :]
        dn += tl.load(dn1_at, mask=k_in & (slice_v == 0) & (part == 0)[None, :], other=0) / scale
    blocks: tl.constexpr = L // BT
    steps = tl.cdiv(length, L) * blocks
    last = (first + (steps - 1) // blocks).to(tl.int64) * H + head
    next_keep = tl.load(bounds_ptr + last, mask=steps > 0, other=0)
    for back in range(0, steps):
        step = steps - 1 - back
        chunk = (first + step // blocks).to(tl.int64) * H + head
        keep = next_keep
        following = tl.maximum(step - 1, 0) // blocks
        next_keep = tl.load(bounds_ptr + (first + following).to(tl.int64) * H + head)
        row = chunk * L + (step % blocks) * BT + t
        token = start + step * BT
        inside = (step * BT + t < length)[:, None]
        q = tl.load(q_ptr + token * q_st + t[:, None] * q_st + d_k[None, :], mask=inside & (d_k < K)[None, :], other=0)
        g = tl.load(g_ptr + token * g_st + t[:, None] * g_st + d_v[None, :], mask=inside & v_in, other=0)
        inverse_norm = tl.load(norms_ptr + row)
        weight = tl.load(rows_ptr + 2 * plane * L + row)
        if step % blocks == blocks - 1:
            tl.store(dC_ptr + (chunk * KP + d_k[:, None]) * VP + d_v[None, :], dC.to(dC_ptr.dtype.element_ty))
            if EXACT or HAS_END:
                tl.store(dn_ptr + (slice_v * plane + chunk) * KP + d_k, tl.sum(dn, 1))
                dn *= keep
            dC *= keep
        q_t = tl.trans(q)
        dC = tl.dot(q_t, (g * (weight * inverse_norm)[:, None]).to(g.dtype), dC, input_precision=PRECISION)
        if EXACT:
            h_at = h_ptr + token * H * V + t[:, None] * (H * V) + d_v[None, :]
            h = tl.load(h_at, mask=inside & v_in, other=0)
            sign = tl.load(norms_ptr + plane * L + row)
            dr = -tl.sum(g.to(tl.float32) * h, 1) * inverse_norm * sign
            if k0 == 0:
                tl.store(dr_ptr + slice_v * plane * L + row, dr)
            dn = tl.dot(q_t, in_parts((weight * dr)[:, None], q), dn, input_precision=PRECISION)
    if HAS_START:
        tl.store(dC0_ptr + (at * K + d_k[:, None]) * V + d_v[None, :], dC * scale, mask=k_in & v_in)
        dn0_ptr += (slice_v * (tl.num_programs(0) // tiles) + at) * K
        tl.store(dn0_ptr + d_k, tl.sum(dn, 1) * scale, mask=d_k < K)
