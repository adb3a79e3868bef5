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
def tokens(ptr, row, stride, d, length, D: tl.constexpr, EVEN: tl.constexpr):
    """(tokens, channels) of a chunk; zero beyond its length, and beyond D unless the block divides it."""
    mask = (row < length)[:, None]
    if not EVEN:
        mask = mask & (d < D)[None, :]
    return tl.load(ptr + row[:, None] * stride + d[None, :], mask=mask, other=0)


@triton.jit
def _tile(
    x, stride, at, row0, d0, length,
    D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) of a chunk and head from token row0 and channel d0 on: x is a pointer to them, or, if
    DESCRIBED, a descriptor of all of (B, H, S, D), and `at` where they are: batch, head, first token."""
    if DESCRIBED:
        tile = x.load([at[0], at[1], at[2] + row0, d0]).reshape([ROWS, COLS])
    else:
        d = d0 + tl.arange(0, COLS)
        tile = tokens(x, row0 + tl.arange(0, ROWS), stride, d, length, D, D % COLS == 0)
    return tile


@triton.jit
def store_tokens(ptr, row, stride, d, length, x, D: tl.constexpr):
    mask = (row < length)[:, None] & (d < D)[None, :]
    tl.store(ptr + row[:, None] * stride + d[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def product(
    a, a_st, m0, b, b_st, n0, at, length,
    D: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """A B^T (BM, BM)."""
    scores = tl.zeros([BM, BM], tl.float32)
    for r in range(0, D, BR):
        rows = _tile(a, a_st, at, m0, r, length, D, BM, BR, DESCRIBED)
        columns = _tile(b, b_st, at, n0, r, length, D, BM, BR, DESCRIBED)
        scores = tl.dot(rows, tl.trans(columns), scores, input_precision=PRECISION)
    return scores


@triton.jit
def _state(
    z, row, column, r,
    VP: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, TRANSPOSED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """(BR, BD) of Z from its row r on."""
    if DESCRIBED and TRANSPOSED:
        state = tl.trans(z.load([row.to(tl.int32), column + r]))
    elif DESCRIBED:
        state = z.load([row.to(tl.int32) + r, column])
    else:
        along, across = r + tl.arange(0, BR), tl.arange(0, BD)
        z += row * VP + column
        if TRANSPOSED:
            state = tl.load(z + across[None, :] * VP + along[:, None])
        else:
            state = tl.load(z + along[:, None] * VP + across[None, :])
    return state


@triton.jit
def two_products(
    a, a_st, b, b_st, m0, at, z, z_row, z_column, length,
    D: tl.constexpr, VP: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """A B^T (BM, BM) of the same tokens, and A Z (BM, BD): one pass over A. Z is the block from z_row and
    z_column on of the states, which have VP columns, or if TRANSPOSED its transpose.

    What a pipelined product reads must be read by nothing else here: for a load that also goes to registers
    Triton (3.6 to 3.7 at least) takes one buffer less than the products in flight need, and the next copy
    overwrites what they still read.
    """
    scores = tl.zeros([BM, BM], tl.float32)
    carried = tl.zeros([BM, BD], tl.float32)
    for r in range(0, D, BR):
        rows = _tile(a, a_st, at, m0, r, length, D, BM, BR, DESCRIBED)
        columns = _tile(b, b_st, at, m0, r, length, D, BM, BR, DESCRIBED)
        state = _state(z, z_row, z_column, r, VP, BR, BD, TRANSPOSED, DESCRIBED)
        scores = tl.dot(rows, tl.trans(columns), scores, input_precision=PRECISION)
        carried = tl.dot(rows.to(state.dtype), state, carried, input_precision=PRECISION)
    return scores, carried


@triton.jit
def _times_n(a_ptr, a_st, n_ptr, row, length, D: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr):
    """A n (BM), in float32: see `two_products` for why not beside them."""
    a_n = tl.zeros([BM], tl.float32)
    for r in tl.range(0, D, BR, num_stages=1):
        d = r + tl.arange(0, BR)
        a = tokens(a_ptr, row, a_st, d, length, D, D % BR == 0)
        a_n += tl.sum(a.to(tl.float32) * tl.load(n_ptr + d)[None, :], 1)
    return a_n


@triton.jit
def weights_of(rows_ptr, plane, query, key, QUERY: tl.constexpr, PRECISE: tl.constexpr):
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
    q_desc, k_desc, C_desc,
    q_ptr, k_ptr, v_ptr, rows_ptr, C_ptr, n_ptr, h_ptr, norms_ptr, cu_ptr, first_ptr, owner_ptr,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh, S, NC, CH, H, scale, eps,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, PRECISE: tl.constexpr,
    DESCRIBED: tl.constexpr,
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
    at = (batch, head, start.to(tl.int32))
    q, k, C = q_ptr, k_ptr, C_ptr
    if DESCRIBED:
        q, k, C = q_desc, k_desc, C_desc
    scores, h = two_products(
        q, q_st, k, k_st, m0, at, C, chunk_head * KP, v0, length,
        K, VP, BM, BR, BD, False, PRECISION, DESCRIBED,
    )  # fmt: skip
    read = tl.load(rows_ptr + 2 * plane + row)
    scores *= weights_of(rows_ptr, plane, row, row, 0, PRECISE)
    own = tl.sum(tl.where(row[:, None] == row[None, :], scores, 0.0), 1)
    norm = q_n * read + tl.sum(scores, 1)
    d_v = v0 + tl.arange(0, BD)
    v = tokens(v_ptr, row, v_st, d_v, length, V, V % BD == 0)
    h = tl.dot(scores.to(v.dtype), v, h * read[:, None], input_precision=PRECISION)
    for n0 in range(0, m0, BM):
        column = n0 + tl.arange(0, BM)
        scores = product(q, q_st, m0, k, k_st, n0, at, length, K, BM, BR, PRECISION, DESCRIBED)
        scores *= weights_of(rows_ptr, plane, row, column, 0, PRECISE)
        norm += tl.sum(scores, 1)
        v = tokens(v_ptr, column, v_st, d_v, length, V, V % BD == 0)
        h = tl.dot(scores.to(v.dtype), v, h, input_precision=PRECISION)
    own_leads = tl.abs(own) * 2 > tl.abs(norm)
    norm *= scale
    floor = tl.load(rows_ptr + 4 * plane + row)
    inverse_norm = 1 / (tl.maximum(tl.abs(norm), floor) + eps)
    h *= (inverse_norm * scale)[:, None]
    store_tokens(h_ptr + ((batch.to(tl.int64) * S + start) * H + head) * V, row, H * V, d_v, length, h, V)
    if v0 == 0:
        sign = tl.where(norm > 0, 1.0, -1.0)
        tl.store(norms_ptr, tl.where(row < length, inverse_norm, 0))
        tl.store(norms_ptr + plane, tl.where((row < length) & (tl.abs(norm) > floor), sign, 0))
        tl.store(norms_ptr + 2 * plane, tl.where((row < length) & own_leads, 1.0, 0.0))
