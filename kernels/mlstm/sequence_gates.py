# mypy: disable-error-code="no-untyped-def"
"""Gates of the sequence kernels: once per token and head, before and after all the matrix products.

The scale m depends on the gates only, by a max-plus scan. With b the running sum of the log forget gates
within a chunk and x = i - b, M the scale before the chunk and w_t = max(M, max_{j<=t} x_j):

    m_t = b_t + w_t      weight of token j for token t: exp(x_j - w_t)      of the state before the chunk:
    exp(M - w_t)

so no kernel ever rescales an accumulator online. Exponents are in units of log 2 (the kernels use exp2) and
sums are in float64: b reaches thousands within a chunk while only differences matter, and 24 bits do not hold
both. There are few gates; their arithmetic is free.

Three kernels: `bounds_kernel` reduces every chunk, `scan_kernel` runs through a sequence, `rows_kernel`
writes

rows (ROWS, chunks, H, L), what a token is in its chunk:
    x; w; the weight of the state before the chunk; the weight in the state at its end; exp(-m); what float32
    has left of x; of w
bounds (BOUNDS, chunks, H), what a chunk is in its sequence:
    the weight of the state at its start in that at its end; a scratch; M at its start; M at its end
"""

import triton
import triton.language as tl

ROWS = 7
READ_WEIGHT, STATE_WEIGHT = 2, 3
BOUNDS = 4
LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def chunk_span(chunk, cu_ptr, first_ptr, owner_ptr, S, NC, L: tl.constexpr, VARLEN: tl.constexpr):
    """Batch row, sequence, first token of a chunk, tokens from there to its end (0 or less: none)."""
    if VARLEN:
        # Documents are packed in one row. The host cannot know how many chunks they make without waiting for
        # the device, so there may be a few too many: those belong to no document.
        batch = chunk * 0
        sequence = tl.load(owner_ptr + chunk)
        offset = (chunk - tl.load(first_ptr + sequence)) * L
        start = tl.load(cu_ptr + sequence) + offset
        length = tl.load(cu_ptr + sequence + 1) - start
    else:
        batch = chunk // NC
        sequence = batch
        start = (chunk % NC).to(tl.int64) * L
        length = S - start
    return batch, sequence, start.to(tl.int64), length.to(tl.int32)


@triton.jit
def sequence_span(sequence, cu_ptr, first_ptr, S, NC, VARLEN: tl.constexpr):
    """Batch row, first token, number of tokens, first chunk of a sequence."""
    if VARLEN:
        batch = sequence * 0
        start = tl.load(cu_ptr + sequence).to(tl.int64)
        length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
        first = tl.load(first_ptr + sequence).to(tl.int32)
    else:
        batch = sequence
        start = (sequence * 0).to(tl.int64)
        length = S
        first = sequence * NC
    return batch, start, length, first


@triton.jit
def _capped(x, cap, HAS_CAP: tl.constexpr):
    """cap tanh(x / cap) and its derivative."""
    slope = x * 0 + 1
    if HAS_CAP:
        e = tl.exp(-2 * tl.abs(x) / cap)
        tanh = (1 - e) / (1 + e)
        slope = 1 - tanh * tanh
        x = tl.where(x < 0, -cap * tanh, cap * tanh)
    return x, slope


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _log_gates(
    i_ptr, f_ptr, batch, start, head, t, length, i_sb, i_st, i_sh, f_sb, f_st, f_sh, cap,
    HAS_CAP: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Log gates of a chunk in float64 and units of log 2. Padding writes nothing and forgets nothing."""
    inside = t < length
    i_ptr += batch.to(tl.int64) * i_sb + start * i_st + head.to(tl.int64) * i_sh
    f_ptr += batch.to(tl.int64) * f_sb + start * f_st + head.to(tl.int64) * f_sh
    i, _ = _capped(tl.load(i_ptr + t * i_st, mask=inside, other=0).to(tl.float64), cap, HAS_CAP)
    f, _ = _capped(tl.load(f_ptr + t * f_st, mask=inside, other=0).to(tl.float64), cap, HAS_CAP)
    if SIGMOID:
        i = _log_sigmoid(i)
    return tl.where(inside, i * LOG2E, NOTHING), tl.where(inside, _log_sigmoid(f) * LOG2E, 0)


@triton.jit(do_not_specialize=["i_sb", "f_sb", "S", "NC", "CH", "H"])
def bounds_kernel(
    i_ptr, f_ptr, bounds_ptr, cu_ptr, first_ptr, owner_ptr,
    i_sb, i_st, i_sh, f_sb, f_st, f_sh, S, NC, CH, H, cap,
    L: tl.constexpr, HAS_CAP: tl.constexpr, SIGMOID: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """One program a chunk and head: sum of log forget gates, and M at its end if nothing came before it.

    CH: number of chunks times H.
    """
    pid = tl.program_id(0)
    batch, _, start, length = chunk_span(pid // H, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    if length <= 0:
        return
    t = tl.arange(0, L)
    i, f = _log_gates(
        i_ptr,
        f_ptr,
        batch,
        start,
        pid % H,
        t,
        length,
        i_sb,
        i_st,
        i_sh,
        f_sb,
        f_st,
        f_sh,
        cap,
        HAS_CAP,
        SIGMOID,
    )
    g = tl.sum(f, 0)
    tl.store(bounds_ptr + pid, g.to(tl.float32))
    tl.store(bounds_ptr + CH + pid, tl.max(i + (g - tl.cumsum(f, 0)), 0).to(tl.float32))


@triton.jit
def _then(g, a, g_next, a_next):
    return g + g_next, tl.maximum(a + g_next, a_next)


@triton.jit(do_not_specialize=["S", "NC", "CH", "H"])
def scan_kernel(
    bounds_ptr, m_start_ptr, m_end_ptr, cu_ptr, first_ptr, S, NC, CH, H,
    L: tl.constexpr, HAS_START: tl.constexpr, VARLEN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program a sequence and head: M at the start and end of every chunk, TILE chunks at a time."""
    pid = tl.program_id(0)
    sequence, head = pid // H, pid % H
    _, _, length, first = sequence_span(sequence, cu_ptr, first_ptr, S, NC, VARLEN)
    chunks = tl.cdiv(length, L)
    M = 0.0
    if HAS_START:
        M = tl.load(m_start_ptr + pid).to(tl.float32) * LOG2E
    plane = CH.to(tl.int64)
    bounds_ptr += first.to(tl.int64) * H + head
    tl.store(bounds_ptr + 2 * plane, M, mask=chunks > 0)
    for base in range(0, chunks, TILE):
        c = base + tl.arange(0, TILE)
        at = bounds_ptr + c * H
        g = tl.load(at, mask=c < chunks, other=0.0)
        a = tl.load(at + plane, mask=c < chunks, other=NOTHING)
        g_sum, peak = tl.associative_scan((g, a), 0, _then)
        end = tl.maximum(g_sum + M, peak)
        tl.store(at + 3 * plane, end, mask=c < chunks)
        tl.store(at + 2 * plane + H, end, mask=c + 1 < chunks)
        M = tl.sum(tl.where(c == base + TILE - 1, end, 0.0), 0)
    tl.store(m_end_ptr + pid, M / LOG2E)


@triton.jit(do_not_specialize=["i_sb", "f_sb", "S", "NC", "CH", "H"])
def rows_kernel(
    i_ptr, f_ptr, rows_ptr, bounds_ptr, cu_ptr, first_ptr, owner_ptr,
    i_sb, i_st, i_sh, f_sb, f_st, f_sh, S, NC, CH, H, cap,
    L: tl.constexpr, HAS_CAP: tl.constexpr, SIGMOID: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """One program a chunk and head: the rows, and the first of the bounds."""
    pid = tl.program_id(0)
    batch, _, start, length = chunk_span(pid // H, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    if length <= 0:
        return
    t = tl.arange(0, L)
    plane = CH.to(tl.int64)
    M = tl.load(bounds_ptr + 2 * plane + pid)
    M_end = tl.load(bounds_ptr + 3 * plane + pid)
    i, f = _log_gates(
        i_ptr,
        f_ptr,
        batch,
        start,
        pid % H,
        t,
        length,
        i_sb,
        i_st,
        i_sh,
        f_sb,
        f_st,
        f_sh,
        cap,
        HAS_CAP,
        SIGMOID,
    )
    g = tl.sum(f, 0)
    b = tl.cumsum(f, 0)
    x = i - b
    w = tl.maximum(tl.associative_scan(x, 0, _larger), M.to(tl.float64))
    rows_ptr += pid.to(tl.int64) * L + t
    tl.store(bounds_ptr + pid, tl.exp2((g + M - M_end).to(tl.float32)))
    plane *= L
    # Rounded alike, so that a token that is its own maximum weighs exactly 1.
    tl.store(rows_ptr, x.to(tl.float32))
    tl.store(rows_ptr + plane, w.to(tl.float32))
    tl.store(rows_ptr + 2 * plane, tl.exp2((M - w).to(tl.float32)))
    tl.store(rows_ptr + 3 * plane, tl.exp2((i + (g - b) - M_end).to(tl.float32)))
    tl.store(rows_ptr + 4 * plane, tl.exp2(-(b + w).to(tl.float32)))
    tl.store(rows_ptr + 5 * plane, tl.where(t < length, x - x.to(tl.float32), 0).to(tl.float32))
    tl.store(rows_ptr + 6 * plane, (w - w.to(tl.float32)).to(tl.float32))


@triton.jit(do_not_specialize=["i_sb", "f_sb", "S", "NC", "CH", "H", "eps"])
def gate_gradients_kernel(
    i_ptr, f_ptr, dots_ptr, ends_ptr, norms_ptr, dr_ptr, di_ptr, df_ptr, cu_ptr, first_ptr, owner_ptr,
    i_sb, i_st, i_sh, f_sb, f_st, f_sh, S, NC, CH, H, cap, eps,
    L: tl.constexpr, SLICES: tl.constexpr, ENDS: tl.constexpr, EXACT: tl.constexpr,
    HAS_CAP: tl.constexpr, SIGMOID: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """One program a chunk and head: the gradients of the pre-activations i and f, (B, S, H) each.

    The log input gate of a token scales its key, so its gradient is k dk. The log forget gate of a token t
    scales all that tokens from t on read of earlier ones, and what earlier ones leave in the state at the end
    of the chunk. The first, because what stays among the later ones cancels, is the sum over s >= t of q dq -
    k dk within the chunk; the second the sum over s < t of the k dk that come through that state, and of what
    was there before the chunk.

    Ending at the chunk keeps the sums short: one over the whole sequence gathers rounding errors that grow
    with its length. And no large term stands in both parts: what a token reads of itself, or leaves in the
    state at once, would hide what a closed forget gate lets through.

    A token that reads little but itself has h = v almost, whatever its gate: the share of k dk that is its
    own is then a small difference of large terms, one of which is h as it was rounded. But h does not change
    when q is scaled (eps apart), so the whole of q dq is known: that share is what the others leave of it.
    """
    pid = tl.program_id(0)
    chunk, head = pid // H, pid % H
    batch, _, start, length = chunk_span(chunk, cu_ptr, first_ptr, owner_ptr, S, NC, L, VARLEN)
    if length <= 0:
        return
    t = tl.arange(0, L)
    inside = t < length
    plane = CH.to(tl.int64) * L
    dots_ptr += pid.to(tl.int64) * L + t
    q_dq = tl.zeros([L], tl.float32)
    k_dk = tl.zeros([L], tl.float32)
    own = tl.zeros([L], tl.float32)
    k_state = tl.zeros([L], tl.float32)
    for s in tl.static_range(SLICES):
        q_dq += tl.load(dots_ptr + s * plane, mask=inside, other=0)
        k_dk += tl.load(dots_ptr + (SLICES + s) * plane, mask=inside, other=0)
        own += tl.load(dots_ptr + (2 * SLICES + s) * plane, mask=inside, other=0)
        k_state += tl.load(dots_ptr + (3 * SLICES + s) * plane, mask=inside, other=0)
    if EXACT:
        norms_ptr += pid.to(tl.int64) * L + t
        dr = tl.load(dr_ptr + pid.to(tl.int64) * L + t, mask=inside, other=0)
        sign = tl.load(norms_ptr + plane, mask=inside, other=0)
        own_leads = tl.load(norms_ptr + 2 * plane, mask=inside, other=0) * tl.abs(sign) > 0
        own = tl.where(own_leads, -dr * sign * eps - q_dq, own)
    end = tl.load(ends_ptr + pid)
    for s in tl.static_range(1, ENDS):
        end += tl.load(ends_ptr + s * CH.to(tl.int64) + pid)
    i_ptr += batch.to(tl.int64) * i_sb + start * i_st + head.to(tl.int64) * i_sh
    f_ptr += batch.to(tl.int64) * f_sb + start * f_st + head.to(tl.int64) * f_sh
    i, i_slope = _capped(tl.load(i_ptr + t * i_st, mask=inside, other=0).to(tl.float64), cap, HAS_CAP)
    f, f_slope = _capped(tl.load(f_ptr + t * f_st, mask=inside, other=0).to(tl.float64), cap, HAS_CAP)
    if SIGMOID:
        i_slope = i_slope / (1 + tl.exp(i))
    here = (q_dq - (k_dk - k_state)).to(tl.float64)
    later = tl.sum(here, 0) - tl.cumsum(here, 0) + here
    before = tl.cumsum(k_state.to(tl.float64), 0) - k_state
    di = (k_dk + own) * i_slope
    df = (later + before + end) * f_slope / (1 + tl.exp(f))
    out = (batch.to(tl.int64) * S + start + t) * H + head
    tl.store(di_ptr + out, di.to(tl.float32), mask=inside)
    tl.store(df_ptr + out, df.to(tl.float32), mask=inside)
