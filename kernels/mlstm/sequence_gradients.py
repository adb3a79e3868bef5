# mypy: disable-error-code="no-untyped-def"
"""The gradients of q, k and v, in parallel over chunks: see `sequence_chunks`."""

import triton
import triton.language as tl

from kernels.mlstm.sequence_chunks import product, store_tokens, tokens, two_products, weights_of
from kernels.mlstm.sequence_gates import chunk_span


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
    a, b, z, at, state, d0,
    q_ptr, k_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr, n_ptr,
    dq_ptr, dq_st, dots_ptr, d, m0, length, plane, scale,
    K: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    PRECISE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    row = m0 + tl.arange(0, BM)
    scores, dq = two_products(
        a, g_st, b, v_st, m0, at, z, state + d0, 0, length, V, VP, BM, BR, BD, True, PRECISION, DESCRIBED
    )
    inverse_norm = tl.load(norms_ptr + row)
    dq *= inverse_norm[:, None]
    if EXACT:
        dq += tl.load(dr_ptr + row)[:, None] * tl.load(n_ptr + d)[None, :]
    dq *= tl.load(rows_ptr + 2 * plane + row)[:, None]
    weights = weights_of(rows_ptr, plane, row, row, 0, PRECISE)
    scores = _score_gradients(scores, inverse_norm, dr_ptr, row, weights, 0, EXACT)
    scores, own = _without_diagonal(scores, row)
    k = tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    dq = tl.dot(scores.to(k.dtype), k, dq, input_precision=PRECISION)
    for n0 in range(0, m0, BM):
        column = n0 + tl.arange(0, BM)
        scores = product(a, g_st, m0, b, v_st, n0, at, length, V, BM, BR, PRECISION, DESCRIBED)
        weights = weights_of(rows_ptr, plane, row, column, 0, PRECISE)
        scores = _score_gradients(scores, inverse_norm, dr_ptr, row, weights, 0, EXACT)
        k = tokens(k_ptr, column, k_st, d, length, K, K % BD == 0)
        dq = tl.dot(scores.to(k.dtype), k, dq, input_precision=PRECISION)
    q = tokens(q_ptr, row, q_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + row, tl.sum(dq * q, 1) * scale)
    k = tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    store_tokens(dq_ptr, row, dq_st, d, length, (dq + own[:, None] * k) * scale, K)


@triton.jit
def _key_gradient(
    a, b, z, at, state, d0,
    q_ptr, k_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr, dn_ptr,
    dk_ptr, dk_st, dots_ptr, slices, d, m0, length, plane, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr, BM: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, EXACT: tl.constexpr, WITH_DN: tl.constexpr,
    PRECISION: tl.constexpr, PRECISE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    row = m0 + tl.arange(0, BM)
    scores, dk = two_products(
        a, v_st, b, g_st, m0, at, z, state + d0, 0, length, V, VP, BM, BR, BD, True, PRECISION, DESCRIBED
    )
    if WITH_DN:
        dk += tl.load(dn_ptr + d)[None, :]
    dk *= tl.load(rows_ptr + 3 * plane + row)[:, None]
    k = tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + 2 * slices * plane + row, tl.sum(dk * k, 1) * scale)
    weights = weights_of(rows_ptr, plane, row, row, 1, PRECISE)
    scores = _score_gradients(scores, tl.load(norms_ptr + row), dr_ptr, row, weights, 1, EXACT)
    scores, own = _without_diagonal(scores, row)
    q = tokens(q_ptr, row, q_st, d, length, K, K % BD == 0)
    dk = tl.dot(scores.to(q.dtype), q, dk, input_precision=PRECISION)
    for n0 in range(m0 + BM, tl.minimum(length, L), BM):
        column = n0 + tl.arange(0, BM)
        scores = product(a, v_st, m0, b, g_st, n0, at, length, V, BM, BR, PRECISION, DESCRIBED)
        weights = weights_of(rows_ptr, plane, column, row, 1, PRECISE)
        inverse_norm = tl.load(norms_ptr + column)
        scores = _score_gradients(scores, inverse_norm, dr_ptr, column, weights, 1, EXACT)
        q = tokens(q_ptr, column, q_st, d, length, K, K % BD == 0)
        dk = tl.dot(scores.to(q.dtype), q, dk, input_precision=PRECISION)
    k = tokens(k_ptr, row, k_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + row, tl.sum(dk * k, 1) * scale)
    direct = own[:, None] * tokens(q_ptr, row, q_st, d, length, K, K % BD == 0)
    tl.store(dots_ptr + slices * plane + row, tl.sum(direct * k, 1) * scale)
    store_tokens(dk_ptr, row, dk_st, d, length, (dk + direct) * scale, K)


@triton.jit
def _value_gradient(
    a, b, z, at, state, d0,
    g_ptr, q_st, k_st, g_st, rows_ptr, norms_ptr,
    dv_ptr, dv_st, d, m0, length, plane, scale,
    K: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr, PRECISE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    row = m0 + tl.arange(0, BM)
    scores, dv = two_products(
        a, k_st, b, q_st, m0, at, z, state, d0, length, K, VP, BM, BR, BD, False, PRECISION, DESCRIBED
    )
    dv *= tl.load(rows_ptr + 3 * plane + row)[:, None]
    scores *= weights_of(rows_ptr, plane, row, row, 1, PRECISE)
    scores *= tl.load(norms_ptr + row)[None, :]
    g = tokens(g_ptr, row, g_st, d, length, V, V % BD == 0)
    dv = tl.dot(scores.to(g.dtype), g, dv, input_precision=PRECISION)
    for n0 in range(m0 + BM, tl.minimum(length, L), BM):
        column = n0 + tl.arange(0, BM)
        scores = product(a, k_st, m0, b, q_st, n0, at, length, K, BM, BR, PRECISION, DESCRIBED)
        scores *= weights_of(rows_ptr, plane, column, row, 1, PRECISE)
        scores *= tl.load(norms_ptr + column)[None, :]
        g = tokens(g_ptr, column, g_st, d, length, V, V % BD == 0)
        dv = tl.dot(scores.to(g.dtype), g, dv, input_precision=PRECISION)
    store_tokens(dv_ptr, row, dv_st, d, length, dv * scale, V)


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
    q_desc, k_desc, v_desc, g_desc, C_desc, dC_desc, dC_of_v_desc,
    q_ptr, k_ptr, v_ptr, g_ptr, rows_ptr, bounds_ptr, norms_ptr, C_ptr, n_ptr, dC_ptr, dn_ptr, dr_ptr,
    dq_ptr, dk_ptr, dv_ptr, dots_ptr, ends_ptr, cu_ptr, first_ptr, owner_ptr,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh, g_sb, g_st, g_sh, S, NC, CH, H, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BRK: tl.constexpr, BRV: tl.constexpr, BDK: tl.constexpr, BDV: tl.constexpr,
    EXACT: tl.constexpr, WITH_DN: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, PRECISE: tl.constexpr,
    DESCRIBED: tl.constexpr,
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
    n_ptr += chunk_head * KP
    dn_ptr += chunk_head * KP
    if tile >= kinds * (L // BM):
        if length > 0:
            end = _end_product(
                C_ptr + chunk_head * KP * VP, n_ptr, dC_ptr + chunk_head * KP * VP, dn_ptr, kind * BDV,
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
    at = (batch, head, start.to(tl.int32))
    state = chunk_head * KP
    q, k, v, g, C, dC, dC_of_v = q_ptr, k_ptr, v_ptr, g_ptr, C_ptr, dC_ptr, dC_ptr
    if DESCRIBED:
        q, k, v, g, C, dC, dC_of_v = q_desc, k_desc, v_desc, g_desc, C_desc, dC_desc, dC_of_v_desc
    if kind < k_slices:
        d0 = kind * BDK
        _query_gradient(
            g, v, C, at, state, d0, q_ptr, k_ptr, q_st, k_st, v_st, g_st, rows_ptr, norms_ptr, dr_ptr, n_ptr,
            dq_ptr + out * K, H * K, dots_ptr, d0 + tl.arange(0, BDK), m0, length, plane, scale,
            K, V, VP, BM, BRV, BDK, EXACT, PRECISION, PRECISE, DESCRIBED,
        )  # fmt: skip
    elif kind < 2 * k_slices:
        d0 = (kind - k_slices) * BDK
        _key_gradient(
            v, g, dC, at, state, d0, q_ptr, k_ptr, q_st, k_st, v_st, g_st,
            rows_ptr, norms_ptr, dr_ptr, dn_ptr, dk_ptr + out * K, H * K, dots_ptr, k_slices,
            d0 + tl.arange(0, BDK), m0, length, plane, scale,
            K, V, KP, VP, L, BM, BRV, BDK, EXACT, WITH_DN, PRECISION, PRECISE, DESCRIBED,
        )  # fmt: skip
    else:
        d0 = (kind - 2 * k_slices) * BDV
        _value_gradient(
            k, q, dC_of_v, at, state, d0, g_ptr, q_st, k_st, g_st, rows_ptr, norms_ptr,
            dv_ptr + out * V, H * V, d0 + tl.arange(0, BDV), m0, length, plane, scale,
            K, V, VP, L, BM, BRK, BDV, PRECISION, PRECISE, DESCRIBED,
        )  # fmt: skip
