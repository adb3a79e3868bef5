# mypy: disable-error-code="no-untyped-def"
"""What is parallel over chunks: h, and the gradients of q, k and v.

All four are one form, with the chunk's tokens as rows of A, B and X, W their L x L weights, and Z the state
at a boundary:

    (A B^T * W) X  +  rows of (A Z), weighted        h: A, B, X, Z = q, k, v, C             dv: k, q, dh, dC
                                                    dq: dh, v, k, C^T                      dk: v, dh, q, dC^T

so one loop over the shared width of A, B and Z feeds both products, and a transposed L x L matrix is a second
product of the operands in the other order, never the transpose of an accumulator (which Triton 3.4 to 3.7.0
miscompiled). A program owns BM tokens and BD columns of one result for one chunk and head; it takes first the
BM x BM block of W on the diagonal, together with Z, then the blocks beside it: earlier ones for h and dq,
later ones for dk and dv.
"""

import triton
import triton.language as tl

from kernels.mlstm.sequence_gates import NOTHING, chunk_span


@triton.jit
def _tokens(ptr, row, stride, d, length, D: tl.constexpr, EVEN: tl.constexpr):
    """(tokens, channels) of a chunk; zero beyond its length, and beyond D unless the block divides it."""
    mask = (row < length)[:, None]
    if not EVEN:
        mask = mask & (d < D)[None, :]
    return tl.load(ptr + row[:, None] * stride + d[None, :], mask=mask, other=0)


@triton.jit
def _store_tokens(ptr, row, stride, d, length, x, D: tl.constexpr):
    mask = (row < length)[:, None] & (d < D)[None, :]
    tl.store(ptr + row[:, None] * stride + d[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _product(
    a_ptr, a_st, row, b_ptr, b_st, column, length,
    D: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A B^T (BM, BM)."""
    scores = tl.zeros([BM, BM], tl.float32)
    for r in range(0, D, BR):
        d = r + tl.arange(0, BR)
        a = _tokens(a_ptr, row, a_st, d, length, D, D % BR == 0)
        b = _tokens(b_ptr, column, b_st, d, length, D, D % BR == 0)
        scores = tl.dot(a, tl.trans(b), scores, input_precision=PRECISION)
    return scores


@triton.jit
def _two_products(
    a_ptr, a_st, b_ptr, b_st, z_ptr, row, length,
    z_sr: tl.constexpr, z_sd: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A B^T (BM, BM) of the same tokens, and A Z (BM, BD): one pass over A.

    What a pipelined product reads must be read by nothing else here: for a load that also goes to registers
    Triton (3.6 to 3.7 at least) takes one buffer less than the products in flight need, and the next copy
    overwrites what they still read.
    """
    scores = tl.zeros([BM, BM], tl.float32)
    carried = tl.zeros([BM, BD], tl.float32)
    for r in range(0, D, BR):
        d = r + tl.arange(0, BR)
        a = _tokens(a_ptr, row, a_st, d, length, D, D % BR == 0)
        b = _tokens(b_ptr, row, b_st, d, length, D, D % BR == 0)
        z = tl.load(z_ptr + d[:, None] * z_sr + tl.arange(0, BD)[None, :] * z_sd)
        scores = tl.dot(a, tl.trans(b), scores, input_precision=PRECISION)
        carried = tl.dot(a.to(z.dtype), z, carried, input_precision=PRECISION)
    return scores, carried


@triton.jit
def _times_n(a_ptr, a_st, n_ptr, row, length, D: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr):
    """A n (BM), in float32: see `_two_products` for why not beside them."""
    a_n = tl.zeros([BM], tl.float32)
    for r in tl.range(0, D, BR, num_stages=1):
        d = r + tl.arange(0, BR)
        a = _tokens(a_ptr, row, a_st, d, length, D, D % BR == 0)
        a_n += tl.sum(a.to(tl.float32) * tl.load(n_ptr + d)[None, :], 1)
    return a_n


@triton.jit
def _weights(rows_ptr, plane, query, key, QUERY: tl.constexpr, PRECISE: tl.constexpr):
    """exp2(x - w) where the query is not before the key, else 0; queries along axis QUERY.

    PRECISE: with what rounding x and w to float32 has left, for they are large where their difference is not.
    """
    x, w = tl.load(rows_ptr + key), tl.load(rows_ptr + plane + query)
    difference = tl.expand_dims(x, QUERY) - tl.expand_dims(w, 1 - QUERY)
    if PRECISE:
        x, w = tl.load(rows_ptr + 5 * plane + key), tl.load(rows_ptr + 6 * plane + query)
        difference += tl.expand_dims(x, QUERY) - tl.expand_dims(w, 1 - QUERY)
    reads = tl.expand_dims(query, 1 - QUERY) >= tl.expand_dims(key, QUERY)
    return tl.exp2(tl.where(reads, difference, NOTHING))


@triton.jit(do_not_specialize=["q_sb", "k_sb", "v_sb", "S", "NC", "CH", "H", "scale", "eps"])
def outputs_kernel(
    q_ptr, k_ptr, v_ptr, rows_ptr, C_ptr, n_ptr, h_ptr, norms_ptr, cu_ptr, first_ptr, owner_ptr,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh, S, NC, CH, H, scale, eps,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """h (B, S, H, V); norms (3, chunks, H, L), in padding 0: 1 / norm; d norm / d(q n), a sign or 0; whether
    more than half of q n is what the token wrote itself."""
    slices: tl.constexpr = VP // BD
    tiles: tl.constexpr = slices * (L // BM)
    pid = tl.program_id(0)
    chunk_head, tile = (pid // tiles).to(tl.int64), pid % tiles
    chunk, head = pid // tiles // H, (pid // tiles) % H
    batch, _, start, length = chunk_span(chunk, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    v0, m0 = tile % slices * BD, tile // slices * BM
    row = m0 + tl.arange(0, BM)
    plane = CH.to(tl.int64) * L
    rows_ptr += chunk_head * L
    norms_ptr += chunk_head * L + row
    if m0 >= length:
        if (length > 0) & (v0 == 0):
            tl.store(norms_ptr, tl.zeros([BM], tl.float32))
            tl.store(norms_ptr + plane, tl.zeros([BM], tl.float32))
            tl.store(norms_ptr + 2 * plane, tl.zeros([BM], tl.float32))
        return
    q_ptr += tl.multiple_of(batch.to(tl.int64) * q_sb, ALIGN) + start * q_st + head.to(tl.int64) * q_sh
    k_ptr += tl.multiple_of(batch.to(tl.int64) * k_sb, ALIGN) + start * k_st + head.to(tl.int64) * k_sh
    v_ptr += tl.multiple_of(batch.to(tl.int64) * v_sb, ALIGN) + start * v_st + head.to(tl.int64) * v_sh
    q_n = _times_n(q_ptr, q_st, n_ptr + chunk_head * KP, row, length, K, BM, BR)
    scores, h = _two_products(
        q_ptr, q_st, k_ptr, k_st, C_ptr + chunk_head * KP * VP + v0, row, length,
        VP, 1, K, BM, BR, BD, PRECISION,
    )  # fmt: skip
    read = tl.load(rows_ptr + 2 * plane + row)
    scores *= _weights(rows_ptr, plane, row, row, 0, PRECISE)
    own = tl.sum(tl.where(row[:, None] == row[None, :], scores, 0.0), 1)
    norm = q_n * read + tl.sum(scores, 1)
    d_v = v0 + tl.arange(0, BD)
    v = _tokens(v_ptr, row, v_st, d_v, length, V, V % BD == 0)
    h = tl.dot(scores.to(v.dtype), v, h * read[:, None], input_precision=PRECISION)
    for n0 in range(0, m0, BM):
        column = n0 + tl.arange(0, BM)
        scores = _product(q_ptr, q_st, row, k_ptr, k_st, column, length, K, BM, BR, PRECISION)
        scores *= _weights(rows_ptr, plane, row, column, 0, PRECISE)
        norm += tl.sum(scores, 1)
        v = _tokens(v_ptr, column, v_st, d_v, length, V, V % BD == 0)
        h = tl.dot(scores.to(v.dtype), v, h, input_precision=PRECISION)
    own_leads = tl.abs(own) * 2 > tl.abs(norm)
    norm *= scale
    floor = tl.load(rows_ptr + 4 * plane + row)
    inverse_norm = 1 / (tl.maximum(tl.abs(norm), floor) + eps)
    h *= (inverse_norm * scale)[:, None]
    _store_tokens(h_ptr + ((batch.to(tl.int64) * S + start) * H + head) * V, row, H * V, d_v, length, h, V)
    if v0 == 0:
        sign = tl.where(norm > 0, 1.0, -1.0)
        tl.store(norms_ptr, tl.where(row < length, inverse_norm, 0))
        tl.store(norms_ptr + plane, tl.where((row < length) & (tl.abs(norm) > floor), sign, 0))
        tl.store(norms_ptr + 2 * plane, tl.where((row < length) & own_leads, 1.0, 0.0))


@triton.jit
def _score_gradients(
    scores, inverse_norm, dr_ptr, t, weights,
    QUERY: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """(dh v / norm + dr) W, without the factor 1 / sqrt(K); queries along axis QUERY."""
    scores *= tl.expand_dims(inverse_norm, 1 - QUERY)
    if EXACT:
        scores += tl.expand_dims(tl.load(dr_ptr + t), 1 - QUERY)
    return scores * weights


@triton.jit
def _without_diagonal(x, row):
    """x (BM, BM) with zeros on the diagonal, and the diagonal."""
    own = row[:, None] == row[None, :]
    return tl.where(own, 0.0, x), tl.sum(tl.where(own, x, 0.0), 1)


@triton.jit
def _query_gradient(
    q_ptr, k_ptr, v_ptr, g_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr, C_ptr, n_ptr,
    dq_ptr, dq_st, dots_ptr, d, m0, length, plane, scale,
    K: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    row = m0 + tl.arange(0, BM)
    scores, dq = _two_products(g_ptr, g_st, v_ptr, v_st, C_ptr, row, length, 1, VP, V, BM, BR, BD, PRECISION)
    inverse_norm = tl.load(norms_ptr + row)
    dq *= inverse_norm[:, None]
    if EXACT:
        dq += tl.load(dr_ptr + row)[:, None] * tl.load(n_ptr + d)[None, :]
    dq *= tl.load(rows_ptr + 2 * plane + row)[:, None]
    weights = _weights(rows_ptr, plane, row, row, 0, PRECISE)
    scores = _score_gradients(scores, inverse_norm, dr_ptr, row, weights, 0, EXACT)
    scores, own = _without_diagonal(scores, row)
    k = _tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    dq = tl.dot(scores.to(k.dtype), k, dq, input_precision=PRECISION)
    for n0 in range(0, m0, BM):
        column = n0 + tl.arange(0, BM)
        scores = _product(g_ptr, g_st, row, v_ptr, v_st, column, length, V, BM, BR, PRECISION)
        weights = _weights(rows_ptr, plane, row, column, 0, PRECISE)
        scores = _score_gradients(scores, inverse_norm, dr_ptr, row, weights, 0, EXACT)
        k = _tokens(k_ptr, column, k_st, d, length, K, K % BD == 0)
        dq = tl.dot(scores.to(k.dtype), k, dq, input_precision=PRECISION)
    q = _tokens(q_ptr, row, q_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + row, tl.sum(dq * q, 1) * scale)
    k = _tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    _store_tokens(dq_ptr, row, dq_st, d, length, (dq + own[:, None] * k) * scale, K)


@triton.jit
def _key_gradient(
    q_ptr, k_ptr, v_ptr, g_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr, dC_ptr, dn_ptr,
    dk_ptr, dk_st, dots_ptr, slices, d, m0, length, plane, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr, BM: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, EXACT: tl.constexpr, WITH_DN: tl.constexpr,
    PRECISION: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    row = m0 + tl.arange(0, BM)
    scores, dk = _two_products(v_ptr, v_st, g_ptr, g_st, dC_ptr, row, length, 1, VP, V, BM, BR, BD, PRECISION)
    if WITH_DN:
        dk += tl.load(dn_ptr + d)[None, :]
    dk *= tl.load(rows_ptr + 3 * plane + row)[:, None]
    k = _tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + 2 * slices * plane + row, tl.sum(dk * k, 1) * scale)
    weights = _weights(rows_ptr, plane, row, row, 1, PRECISE)
    scores = _score_gradients(scores, tl.load(norms_ptr + row), dr_ptr, row, weights, 1, EXACT)
    scores, own = _without_diagonal(scores, row)
    q = _tokens(q_ptr, row, q_st, d, length, K, K % BD == 0)
    dk = tl.dot(scores.to(q.dtype), q, dk, input_precision=PRECISION)
    for n0 in range(m0 + BM, tl.minimum(length, L), BM):
        column = n0 + tl.arange(0, BM)
        scores = _product(v_ptr, v_st, row, g_ptr, g_st, column, length, V, BM, BR, PRECISION)
        weights = _weights(rows_ptr, plane, column, row, 1, PRECISE)
        inverse_norm = tl.load(norms_ptr + column)
        scores = _score_gradients(scores, inverse_norm, dr_ptr, column, weights, 1, EXACT)
        q = _tokens(q_ptr, column, q_st, d, length, K, K % BD == 0)
        dk = tl.dot(scores.to(q.dtype), q, dk, input_precision=PRECISION)
    k = _tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + row, tl.sum(dk * k, 1) * scale)
    direct = own[:, None] * _tokens(q_ptr, row, q_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + slices * plane + row, tl.sum(direct * k, 1) * scale)
    _store_tokens(dk_ptr, row, dk_st, d, length, (dk + direct) * scale, K)


@triton.jit
def _value_gradient(
    q_ptr, k_ptr, g_ptr, q_st, k_st, g_st, rows_ptr, norms_ptr, dC_ptr,
    dv_ptr, dv_st, d, m0, length, plane, scale,
    K: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    row = m0 + tl.arange(0, BM)
    scores, dv = _two_products(k_ptr, k_st, q_ptr, q_st, dC_ptr, row, length, VP, 1, K, BM, BR, BD, PRECISION)
    dv *= tl.load(rows_ptr + 3 * plane + row)[:, None]
    scores *= _weights(rows_ptr, plane, row, row, 1, PRECISE)
    scores *= tl.load(norms_ptr + row)[None, :]
    g = _tokens(g_ptr, row, g_st, d, length, V, V % BD == 0)
    dv = tl.dot(scores.to(g.dtype), g, dv, input_precision=PRECISION)
    for n0 in range(m0 + BM, tl.minimum(length, L), BM):
        column = n0 + tl.arange(0, BM)
        scores = _product(k_ptr, k_st, row, q_ptr, q_st, column, length, K, BM, BR, PRECISION)
        scores *= _weights(rows_ptr, plane, column, row, 1, PRECISE)
        scores *= tl.load(norms_ptr + column)[None, :]
        g = _tokens(g_ptr, column, g_st, d, length, V, V % BD == 0)
        dv = tl.dot(scores.to(g.dtype), g, dv, input_precision=PRECISION)
    _store_tokens(dv_ptr, row, dv_st, d, length, dv * scale, V)


@triton.jit
def _end_product(
    C_ptr, n_ptr, dC_ptr, dn_ptr, v0,
    KP: tl.constexpr, VP: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, WITH_DN: tl.constexpr,
):  # fmt: skip
    """A slice's share of <C, dC> + <n, dn>: a state at the start of a chunk, a gradient at its end."""
    d_v = v0 + tl.arange(0, BD)
    total = tl.zeros([BK], tl.float32)
    for k0 in range(0, KP, BK):
        d_k = k0 + tl.arange(0, BK)
        at = d_k[:, None] * VP + d_v[None, :]
        total += tl.sum(tl.load(C_ptr + at).to(tl.float32) * tl.load(dC_ptr + at), 1)
        if WITH_DN:
            total += tl.where(v0 == 0, tl.load(n_ptr + d_k), 0) * tl.load(dn_ptr + d_k)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["q_sb", "k_sb", "v_sb", "g_sb", "S", "NC", "CH", "H", "scale"])
def gradients_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, rows_ptr, bounds_ptr, norms_ptr, C_ptr, n_ptr, dC_ptr, dn_ptr, dr_ptr,
    dq_ptr, dk_ptr, dv_ptr, dots_ptr, ends_ptr, cu_ptr, first_ptr, owner_ptr,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh, g_sb, g_st, g_sh, S, NC, CH, H, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BRK: tl.constexpr, BRV: tl.constexpr, BDK: tl.constexpr, BDV: tl.constexpr,
    EXACT: tl.constexpr, WITH_DN: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv and what the gates need of the states: programs of four kinds side by side, so that they
    find each other's operands in the L2 cache.

    dots (4, slices of K, chunks, H, L): shares of q dq and of k dk, both without what a token reads of
    itself; that; the part of k dk that comes through the state. ends (slices of V, chunks, H): of the
    gradient of the decay of what was there before the chunk.
    """
    k_slices: tl.constexpr = KP // BDK
    v_slices: tl.constexpr = VP // BDV
    kinds: tl.constexpr = 2 * k_slices + v_slices
    tiles: tl.constexpr = kinds * (L // BM) + v_slices
    pid = tl.program_id(0)
    chunk_head, tile = (pid // tiles).to(tl.int64), pid % tiles
    chunk, head = pid // tiles // H, (pid // tiles) % H
    batch, _, start, length = chunk_span(chunk, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    kind, m0 = tile % kinds, tile // kinds * BM
    plane = CH.to(tl.int64)
    dC_ptr += chunk_head * KP * VP
    dn_ptr += chunk_head * KP
    if tile >= kinds * (L // BM):
        if length > 0:
            end = _end_product(
                C_ptr + chunk_head * KP * VP, n_ptr + chunk_head * KP, dC_ptr, dn_ptr, kind * BDV,
                KP, VP, BRK, BDV, WITH_DN,
            )  # fmt: skip
            tl.store(ends_ptr + kind * plane + chunk_head, end * tl.load(bounds_ptr + chunk_head) * scale)
        return
    if m0 >= length:
        return
    q_ptr += tl.multiple_of(batch.to(tl.int64) * q_sb, ALIGN) + start * q_st + head.to(tl.int64) * q_sh
    k_ptr += tl.multiple_of(batch.to(tl.int64) * k_sb, ALIGN) + start * k_st + head.to(tl.int64) * k_sh
    v_ptr += tl.multiple_of(batch.to(tl.int64) * v_sb, ALIGN) + start * v_st + head.to(tl.int64) * v_sh
    g_ptr += tl.multiple_of(batch.to(tl.int64) * g_sb, ALIGN) + start * g_st + head.to(tl.int64) * g_sh
    out = (batch.to(tl.int64) * S + start) * H + head
    rows_ptr += chunk_head * L
    norms_ptr += chunk_head * L
    dr_ptr += chunk_head * L
    dots_ptr += (kind * plane + chunk_head) * L
    plane *= L
    if kind < k_slices:
        _query_gradient(
            q_ptr, k_ptr, v_ptr, g_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr,
            C_ptr + (chunk_head * KP + kind * BDK) * VP, n_ptr + chunk_head * KP,
            dq_ptr + out * K, H * K, dots_ptr, kind * BDK + tl.arange(0, BDK), m0, length, plane, scale,
            K, V, VP, BM, BRV, BDK, EXACT, PRECISION, PRECISE,
        )  # fmt: skip
    elif kind < 2 * k_slices:
        _key_gradient(
            q_ptr, k_ptr, v_ptr, g_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr,
            dC_ptr + (kind - k_slices) * BDK * VP, dn_ptr,
            dk_ptr + out * K, H * K, dots_ptr, k_slices, (kind - k_slices) * BDK + tl.arange(0, BDK),
            m0, length, plane, scale,
            K, V, KP, VP, L, BM, BRV, BDK, EXACT, WITH_DN, PRECISION, PRECISE,
        )  # fmt: skip
    else:
        _value_gradient(
            q_ptr, k_ptr, g_ptr, q_st, k_st, g_st, rows_ptr, norms_ptr, dC_ptr + (kind - 2 * k_slices) * BDV,
            dv_ptr + out * V, H * V, (kind - 2 * k_slices) * BDV + tl.arange(0, BDV),
            m0, length, plane, scale,
            K, V, VP, L, BM, BRK, BDV, PRECISION, PRECISE,
        )  # fmt: skip
