# mypy: disable-error-code="no-untyped-def"
"""The states at chunk boundaries: the only part of the sequence that must be computed in order.

One program owns a tile (BK, BV) of C for one sequence and head, keeps it in float32 registers and walks over
the chunks, forward for C and n, backward for their gradients. It stores each boundary once, in the dtype of
the products that read it; all else (`sequence_chunks`) is then parallel over chunks. A chunk is taken in
blocks of BT tokens, and the one number a step needs that no pipeline can prefetch, the decay of a chunk, is
loaded a step ahead.

Few sequences and heads would leave most of the GPU idle in a long walk. So a sequence may be cut into
segments: a first launch (TOTALS) walks over each from an empty state and stores what it adds and by how much
it decays what came before; the second one starts every segment from the sum of those that precede it. Each of
both walks takes 1 / segments of the time, at the price of reading the inputs twice.

n is C with values 1, but h divides by q n, so n must not be rounded to 16 bits as C is. It never meets the
matrix units: what a chunk adds to it is a float32 sum over its tokens, taken before (`sequence_norms`), in
the place where the walk, having read it, leaves n. The programs of the first slice of V do so; to sum beside
the products would keep the shared memory busy, which bounds the walk. Gradients here lack the factor 1 /
sqrt(K), which all that read them apply at their end.
"""

import triton
import triton.language as tl

from kernels.mlstm.sequence_gates import sequence_span


@triton.jit
def _place(pid, segments, H, KP: tl.constexpr, VP: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Sequence, head, segment, tile of a program. Tiles of a segment are neighbours and share its inputs."""
    slices: tl.constexpr = VP // BV
    tiles: tl.constexpr = (KP // BK) * slices
    tile = pid % tiles
    segment = (pid // tiles) % segments
    head = (pid // tiles // segments) % H
    sequence = pid // tiles // segments // H
    return sequence, head, segment, tile // slices * BK, tile % slices


@triton.jit
def _segment_span(segment, segments, length, L: tl.constexpr):
    """First chunk of a segment and the one after its last, in a sequence; chunks of a segment; all chunks."""
    chunks = tl.cdiv(length, L)
    each = tl.maximum(tl.cdiv(chunks, segments), 1)
    return tl.minimum(segment * each, chunks), tl.minimum(segment * each + each, chunks), each, chunks


@triton.jit
def _resume(
    C, n, s, at, rows, d_k, d_v, sums_ptr, sums_n_ptr, sums_keep_ptr, KP: tl.constexpr, VP: tl.constexpr
):
    """The state after segment s from the one before it. rows: sequences times heads."""
    keep = tl.load(sums_keep_ptr + s * rows + at)
    there = (s * rows + at).to(tl.int64)
    C = C * keep + tl.load(sums_ptr + (there * KP + d_k[:, None]) * VP + d_v[None, :])
    n = n * keep + tl.load(sums_n_ptr + there * KP + d_k)
    return C, n


@triton.jit(do_not_specialize=["k_sb", "v_sb", "S", "NC", "CH", "H", "segments"])
def states_kernel(
    k_ptr, v_ptr, rows_ptr, bounds_ptr, C_ptr, n_ptr, C0_ptr, n0_ptr, C1_ptr, n1_ptr,
    sums_ptr, sums_n_ptr, sums_keep_ptr, cu_ptr, first_ptr,
    k_sb, k_st, k_sh, v_sb, v_st, v_sh, S, NC, CH, H, segments,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, TOTALS: tl.constexpr,
    HAS_START: tl.constexpr, HAS_END: tl.constexpr, VARLEN: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """C (chunks, H, KP, VP) and n (chunks, H, KP) at the start of every chunk; C1, n1 of the sequence's end.
    On entry, n is what each chunk adds.

    With TOTALS instead, of every segment but the last: sums (segments, sequences, H, KP, VP), sums_n
    (segments, sequences, H, KP) and sums_keep (segments, sequences, H), from which the other launch starts
    its segments.
    """
    sequence, head, segment, k0, slice_v = _place(tl.program_id(0), segments, H, KP, VP, BK, BV)
    batch, start, length, first = sequence_span(sequence, cu_ptr, first_ptr, S, NC, VARLEN)
    begin, end, _, chunks = _segment_span(segment, segments, length, L)
    if (begin >= end) & (segment > 0):
        return
    if TOTALS:  # noqa: SIM102 (a compile-time condition)
        if end >= chunks:
            return
    d_k, d_v = k0 + tl.arange(0, BK), slice_v * BV + tl.arange(0, BV)
    t = tl.arange(0, BT)
    k_ptr += tl.multiple_of(batch.to(tl.int64) * k_sb, ALIGN) + head.to(tl.int64) * k_sh
    v_ptr += tl.multiple_of(batch.to(tl.int64) * v_sb, ALIGN) + head.to(tl.int64) * v_sh
    k_in, v_in = (d_k < K)[:, None], (d_v < V)[None, :]
    plane = CH.to(tl.int64) * L
    C = tl.zeros([BK, BV], tl.float32)
    n = tl.zeros([BK], tl.float32)
    at = sequence * H + head
    rows = tl.num_programs(0) // ((KP // BK) * (VP // BV)) // segments
    if not TOTALS:
        if HAS_START:
            C += tl.load(
                C0_ptr + (at.to(tl.int64) * K + d_k[:, None]) * V + d_v[None, :], mask=k_in & v_in, other=0
            )
            n += tl.load(n0_ptr + at.to(tl.int64) * K + d_k, mask=d_k < K, other=0)
        for s in range(segment):
            C, n = _resume(C, n, s, at, rows, d_k, d_v, sums_ptr, sums_n_ptr, sums_keep_ptr, KP, VP)
    blocks: tl.constexpr = L // BT
    steps = end * blocks
    decay = 1.0
    next_keep = tl.load(bounds_ptr + (first + begin).to(tl.int64) * H + head, mask=begin < end, other=0)
    for step in range(begin * blocks, steps):
        chunk = (first + step // blocks).to(tl.int64) * H + head
        keep = next_keep
        following = tl.minimum(step + 1, steps - 1) // blocks
        next_keep = tl.load(bounds_ptr + (first + following).to(tl.int64) * H + head)
        token = start + step * BT
        inside = (step * BT + t < length)[:, None]
        k = tl.load(
            k_ptr + token * k_st + t[:, None] * k_st + d_k[None, :], mask=inside & (d_k < K)[None, :], other=0
        )
        v = tl.load(v_ptr + token * v_st + t[:, None] * v_st + d_v[None, :], mask=inside & v_in, other=0)
        weight = tl.load(rows_ptr + 3 * plane + chunk * L + (step % blocks) * BT + t)
        if step % blocks == 0:
            n_at = n_ptr + chunk * KP + d_k
            n_added = tl.load(n_at, mask=(slice_v == 0) & (d_k < KP), other=0)
            if not TOTALS:
                tl.store(
                    C_ptr + (chunk * KP + d_k[:, None]) * VP + d_v[None, :], C.to(C_ptr.dtype.element_ty)
                )
                tl.store(n_at, n, mask=(slice_v == 0) & (d_k < KP))
            C *= keep
            n = n * keep + n_added
            decay *= keep
        C = tl.dot(tl.trans(k), (v * weight[:, None]).to(v.dtype), C, input_precision=PRECISION)
    if TOTALS:
        there = (segment * rows + at).to(tl.int64)
        tl.store(sums_ptr + (there * KP + d_k[:, None]) * VP + d_v[None, :], C)
        tl.store(sums_n_ptr + there * KP + d_k, n, mask=(slice_v == 0) & (d_k < KP))
        tl.store(sums_keep_ptr + there, decay)
    elif HAS_END:  # noqa: SIM102
        if end == chunks:
            tl.store(C1_ptr + (at.to(tl.int64) * K + d_k[:, None]) * V + d_v[None, :], C, mask=k_in & v_in)
            tl.store(n1_ptr + at.to(tl.int64) * K + d_k, n, mask=(d_k < K) & (slice_v == 0))


@triton.jit(do_not_specialize=["q_sb", "g_sb", "S", "NC", "CH", "H", "segments", "scale"])
def state_gradients_kernel(
    q_ptr, g_ptr, rows_ptr, bounds_ptr, norms_ptr,
    dC_ptr, dn_ptr, dC1_ptr, dn1_ptr, dC0_ptr, dn0_ptr,
    sums_ptr, sums_n_ptr, sums_keep_ptr, cu_ptr, first_ptr,
    q_sb, q_st, q_sh, g_sb, g_st, g_sh, S, NC, CH, H, segments, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, L: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, TOTALS: tl.constexpr,
    EXACT: tl.constexpr, HAS_START: tl.constexpr, HAS_END: tl.constexpr,
    VARLEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From g = dh: gradients of the states at the END of every chunk, dC (chunks, H, KP, VP) and dn (chunks,
    H, KP), which is on entry what each chunk adds, if EXACT. With TOTALS instead, of every segment but the
    first: sums as in `states_kernel`.
    """
    sequence, head, segment, k0, slice_v = _place(tl.program_id(0), segments, H, KP, VP, BK, BV)
    batch, start, length, first = sequence_span(sequence, cu_ptr, first_ptr, S, NC, VARLEN)
    begin, end, each, chunks = _segment_span(segment, segments, length, L)
    if (begin >= end) & (segment > 0):
        return
    if TOTALS:  # noqa: SIM102 (a compile-time condition)
        if segment == 0:
            return
    d_k, d_v = k0 + tl.arange(0, BK), slice_v * BV + tl.arange(0, BV)
    t = tl.arange(0, BT)
    q_ptr += tl.multiple_of(batch.to(tl.int64) * q_sb, ALIGN) + head.to(tl.int64) * q_sh
    g_ptr += tl.multiple_of(batch.to(tl.int64) * g_sb, ALIGN) + head.to(tl.int64) * g_sh
    k_in, v_in = (d_k < K)[:, None], (d_v < V)[None, :]
    plane = CH.to(tl.int64)
    dC = tl.zeros([BK, BV], tl.float32)
    dn = tl.zeros([BK], tl.float32)
    at = sequence * H + head
    rows = tl.num_programs(0) // ((KP // BK) * (VP // BV)) // segments
    if not TOTALS:
        if HAS_END:
            dC1_at = dC1_ptr + (at.to(tl.int64) * K + d_k[:, None]) * V + d_v[None, :]
            dC += tl.load(dC1_at, mask=k_in & v_in, other=0) / scale
            dn1_at = dn1_ptr + at.to(tl.int64) * K + d_k
            dn += tl.load(dn1_at, mask=d_k < K, other=0) / scale
        used = tl.cdiv(chunks, each)
        for back in range(used - 1 - segment):
            s = used - 1 - back
            dC, dn = _resume(dC, dn, s, at, rows, d_k, d_v, sums_ptr, sums_n_ptr, sums_keep_ptr, KP, VP)
    blocks: tl.constexpr = L // BT
    steps = (end - begin) * blocks
    final = end * blocks - 1
    decay = 1.0
    last = (first + final // blocks).to(tl.int64) * H + head
    next_keep = tl.load(bounds_ptr + last, mask=steps > 0, other=0)
    for back in range(steps):
        step = final - back
        chunk = (first + step // blocks).to(tl.int64) * H + head
        keep = next_keep
        following = tl.maximum(step - 1, begin * blocks) // blocks
        next_keep = tl.load(bounds_ptr + (first + following).to(tl.int64) * H + head)
        row = chunk * L + (step % blocks) * BT + t
        token = start + step * BT
        inside = (step * BT + t < length)[:, None]
        q = tl.load(
            q_ptr + token * q_st + t[:, None] * q_st + d_k[None, :], mask=inside & (d_k < K)[None, :], other=0
        )
        g = tl.load(g_ptr + token * g_st + t[:, None] * g_st + d_v[None, :], mask=inside & v_in, other=0)
        inverse_norm = tl.load(norms_ptr + row)
        weight = tl.load(rows_ptr + 2 * plane * L + row)
        if step % blocks == blocks - 1:
            dn_at = dn_ptr + chunk * KP + d_k
            dn_added = tl.zeros([BK], tl.float32)
            if EXACT:
                dn_added = tl.load(dn_at, mask=(slice_v == 0) & (d_k < KP), other=0)
            if not TOTALS:
                tl.store(
                    dC_ptr + (chunk * KP + d_k[:, None]) * VP + d_v[None, :], dC.to(dC_ptr.dtype.element_ty)
                )
                if EXACT or HAS_END:
                    tl.store(dn_at, dn, mask=(slice_v == 0) & (d_k < KP))
            dn = dn * keep + dn_added
            dC *= keep
            decay *= keep
        weighted = (g * (weight * inverse_norm)[:, None]).to(g.dtype)
        dC = tl.dot(tl.trans(q), weighted, dC, input_precision=PRECISION)
    if TOTALS:
        there = (segment * rows + at).to(tl.int64)
        tl.store(sums_ptr + (there * KP + d_k[:, None]) * VP + d_v[None, :], dC)
        tl.store(sums_n_ptr + there * KP + d_k, dn, mask=(slice_v == 0) & (d_k < KP))
        tl.store(sums_keep_ptr + there, decay)
    elif HAS_START:  # noqa: SIM102
        if segment == 0:
            tl.store(
                dC0_ptr + (at.to(tl.int64) * K + d_k[:, None]) * V + d_v[None, :],
                dC * scale,
                mask=k_in & v_in,
            )
            dn0_at = dn0_ptr + at.to(tl.int64) * K + d_k
            tl.store(dn0_at, dn * scale, mask=(d_k < K) & (slice_v == 0))
