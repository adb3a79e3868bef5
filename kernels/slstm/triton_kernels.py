# mypy: disable-error-code="no-untyped-def"
"""The sLSTM cell in Triton: one program owns 16 sequences of one head and walks over their tokens.

Forward and backward in the form of `kernels.slstm.loop`: moving averages u, logarithms L of their weight. The
matrix R of a head is read once and stays in shared memory (CHIP), or, where it does not fit, is read again
from the second-level cache at every step, in slices of its rows; then a step's vectors, which must be sliced
too, pass through a buffer in memory that the program alone uses, two steps' worth by turns.

Everything but the operands of the recurrent product is float32. What comes next in time is loaded a step
ahead. Pointers move with time, so that no offset grows beyond 32 bits.
"""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    tanh = (1 - e) / (1 + e)
    return tl.where(x < 0, -tanh, tanh)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _place(H, B, D, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Head, batch rows, channels, and which of them there are."""
    pid = tl.program_id(0)
    rows = (pid // H) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    return pid % H, rows[:, None].to(tl.int64), columns[None, :], (rows < B)[:, None] & (columns < D)[None, :]


@triton.jit
def _matrix(r_ptr, head, gate, first, D, COUNT: tl.constexpr, WIDTH: tl.constexpr, BACK: tl.constexpr):
    """COUNT rows of R of a gate (in, out) from `first` on; BACK: rows of its transpose (out, in)."""
    k = first + tl.arange(0, COUNT)[:, None]
    n = tl.arange(0, WIDTH)[None, :]
    r_ptr += head.to(tl.int64) * D * 4 * D + gate * D
    if BACK:
        at = n * 4 * D + k
    else:
        at = k * 4 * D + n
    return tl.load(r_ptr + at, mask=(k < D) & (n < D), other=0)


@triton.jit
def _streamed(
    sum, from_ptr, r_ptr, head, gate, D,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, BACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum + v R of a gate (BACK: its transpose), v (ROWS, WIDTH) being in the program's buffer."""
    for first in range(0, WIDTH, SLICE):
        k = first + tl.arange(0, SLICE)
        v = tl.load(from_ptr + tl.arange(0, ROWS)[:, None] * WIDTH + k[None, :])
        matrix = _matrix(r_ptr, head, gate, first, D, SLICE, WIDTH, BACK)
        sum = tl.dot(v, matrix, sum, input_precision=PRECISION)
    return sum


@triton.jit(do_not_specialize=["B", "S", "H", "x_sb"])
def forward_kernel(
    x_ptr, r_ptr, b_ptr, y0_ptr, u0_ptr, l0_ptr, h_ptr, u1_ptr, l1_ptr,
    a_ptr, u_ptr, z_ptr, o_ptr, gf_ptr, w_ptr, buffer_ptr,
    B, S, H, D, x_sb, x_st, x_sg, x_sh,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, CHIP: tl.constexpr, MIXES: tl.constexpr,
    STARTS: tl.constexpr, SIGMOID: tl.constexpr, NORMALISER: tl.constexpr, SAVES: tl.constexpr,
    WRITES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h (B, S, H, D), the final u and L (B, H, D) in float32; for the backward pass a, u, z, o, gf =
    sigmoid(-f), and w (WRITES) that the gradient of the input gate needs."""
    head, rows, columns, inside = _place(H, B, D, ROWS, WIDTH)
    state = (rows * H + head) * D + columns
    step = (rows * S * H + head) * D + columns
    dtype = x_ptr.dtype.element_ty
    bias = b_ptr + head * 4 * D + columns
    b_i = tl.load(bias, mask=columns < D, other=0).to(tl.float32)
    b_f = tl.load(bias + D, mask=columns < D, other=0).to(tl.float32)
    b_z = tl.load(bias + 2 * D, mask=columns < D, other=0).to(tl.float32)
    b_o = tl.load(bias + 3 * D, mask=columns < D, other=0).to(tl.float32)
    y = tl.zeros([ROWS, WIDTH], tl.float32)
    u = tl.zeros([ROWS, WIDTH], tl.float32)
    L = tl.full([ROWS, WIDTH], float("-inf"), tl.float32)
    if STARTS:
        y = tl.load(y0_ptr + state, mask=inside, other=0).to(tl.float32)
        u = tl.load(u0_ptr + state, mask=inside, other=0).to(tl.float32)
        L = tl.load(l0_ptr + state, mask=inside, other=0).to(tl.float32)
    if not NORMALISER:
        L = tl.zeros([ROWS, WIDTH], tl.float32)
    if MIXES and CHIP:
        r_i = _matrix(r_ptr, head, 0, 0, D, WIDTH, WIDTH, False)
        r_f = _matrix(r_ptr, head, 1, 0, D, WIDTH, WIDTH, False)
        r_z = _matrix(r_ptr, head, 2, 0, D, WIDTH, WIDTH, False)
        r_o = _matrix(r_ptr, head, 3, 0, D, WIDTH, WIDTH, False)
    own = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    buffer_ptr += tl.program_id(0).to(tl.int64) * (2 * ROWS * WIDTH)
    x_ptr += rows * x_sb + head * x_sh + columns
    x_i = tl.load(x_ptr, mask=inside, other=0)
    x_f = tl.load(x_ptr + x_sg, mask=inside, other=0)
    x_z = tl.load(x_ptr + 2 * x_sg, mask=inside, other=0)
    x_o = tl.load(x_ptr + 3 * x_sg, mask=inside, other=0)
    for t in range(S):
        i = x_i.to(tl.float32) + b_i
        f = x_f.to(tl.float32) + b_f
        z = x_z.to(tl.float32) + b_z
        o = x_o.to(tl.float32) + b_o
        x_ptr += x_st
        later = inside & (t + 1 < S)
        x_i = tl.load(x_ptr, mask=later, other=0)
        x_f = tl.load(x_ptr + x_sg, mask=later, other=0)
        x_z = tl.load(x_ptr + 2 * x_sg, mask=later, other=0)
        x_o = tl.load(x_ptr + 3 * x_sg, mask=later, other=0)
        if MIXES:
            if CHIP:
                v = y.to(dtype)
                i = tl.dot(v, r_i, i, input_precision=PRECISION)
                f = tl.dot(v, r_f, f, input_precision=PRECISION)
                z = tl.dot(v, r_z, z, input_precision=PRECISION)
                o = tl.dot(v, r_o, o, input_precision=PRECISION)
            else:
                # By turns: a warp that is still reading the last step's vectors does not see this one's.
                turn = buffer_ptr + (t % 2) * (ROWS * WIDTH)
                tl.store(turn + own, y.to(dtype))
                tl.debug_barrier()
                i = _streamed(i, turn, r_ptr, head, 0, D, ROWS, WIDTH, SLICE, False, PRECISION)
                f = _streamed(f, turn, r_ptr, head, 1, D, ROWS, WIDTH, SLICE, False, PRECISION)
                z = _streamed(z, turn, r_ptr, head, 2, D, ROWS, WIDTH, SLICE, False, PRECISION)
                o = _streamed(o, turn, r_ptr, head, 3, D, ROWS, WIDTH, SLICE, False, PRECISION)
        z = _tanh(z)
        o = _sigmoid(o)
        gf = _sigmoid(-f)
        log_i = i
        w = i
        if SIGMOID:
            log_i = _log_sigmoid(i)
            w = _sigmoid(-i)
        if NORMALISER:
            log_f = _log_sigmoid(f) + L
            s = log_i - log_f
            e = tl.exp(-tl.abs(s))
            a = tl.where(s < 0, e, 1) / (1 + e)
            L = tl.maximum(log_i, log_f) + tl.log(1 + e)
            u += a * (z - u)
            y = o * u
        else:
            a = 1 - gf
            write = tl.exp(log_i)
            if not SIGMOID:
                w = write
            u = a * u + write * z
            y = o * _tanh(u)
        tl.store(h_ptr + step, y.to(dtype), mask=inside)
        if SAVES:
            tl.store(a_ptr + step, a, mask=inside)
            tl.store(u_ptr + step, u.to(u_ptr.dtype.element_ty), mask=inside)
            tl.store(z_ptr + step, z.to(dtype), mask=inside)
            tl.store(o_ptr + step, o.to(dtype), mask=inside)
            tl.store(gf_ptr + step, gf.to(dtype), mask=inside)
            if WRITES:
                tl.store(w_ptr + step, w.to(dtype), mask=inside)
        step += H * D
    tl.store(u1_ptr + state, u, mask=inside)
    tl.store(l1_ptr + state, L, mask=inside)


@triton.jit(do_not_specialize=["B", "S", "H"])
def backward_kernel(
    dh_ptr, du1_ptr, dl1_ptr, r_ptr, u0_ptr, a_ptr, u_ptr, z_ptr, o_ptr, gf_ptr, w_ptr,
    dx_ptr, dy0_ptr, du0_ptr, dl0_ptr, buffer_ptr,
    B, S, H, D,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, CHIP: tl.constexpr, MIXES: tl.constexpr,
    STARTS: tl.constexpr, SIGMOID: tl.constexpr, NORMALISER: tl.constexpr, WRITES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dx (B, S, 4, H, D), and the gradients of the state before the first token, (B, H, D) in float32."""
    head, rows, columns, inside = _place(H, B, D, ROWS, WIDTH)
    state = (rows * H + head) * D + columns
    dtype = dx_ptr.dtype.element_ty
    HD = H * D
    last = (S - 1).to(tl.int64) * HD
    step = (rows * S * H + head) * D + columns + last
    dx_at = (rows * S * 4 * H + head) * D + columns + 4 * last
    du = tl.load(du1_ptr + state, mask=inside, other=0).to(tl.float32)
    dL = tl.load(dl1_ptr + state, mask=inside, other=0).to(tl.float32)
    u_first = tl.zeros([ROWS, WIDTH], tl.float32)
    if STARTS:
        u_first = tl.load(u0_ptr + state, mask=inside, other=0).to(tl.float32)
    if not NORMALISER:
        dL = tl.zeros([ROWS, WIDTH], tl.float32)
    if MIXES and CHIP:
        r_i = _matrix(r_ptr, head, 0, 0, D, WIDTH, WIDTH, True)
        r_f = _matrix(r_ptr, head, 1, 0, D, WIDTH, WIDTH, True)
        r_z = _matrix(r_ptr, head, 2, 0, D, WIDTH, WIDTH, True)
        r_o = _matrix(r_ptr, head, 3, 0, D, WIDTH, WIDTH, True)
    own = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    buffer_ptr += tl.program_id(0).to(tl.int64) * (8 * ROWS * WIDTH)
    dy_rec = tl.zeros([ROWS, WIDTH], tl.float32)
    u = tl.load(u_ptr + step, mask=inside, other=0).to(tl.float32)
    dh = tl.load(dh_ptr + step, mask=inside, other=0)
    a = tl.load(a_ptr + step, mask=inside, other=0)
    z_next = tl.load(z_ptr + step, mask=inside, other=0)
    o_next = tl.load(o_ptr + step, mask=inside, other=0)
    gf_next = tl.load(gf_ptr + step, mask=inside, other=0)
    w_next = gf_next
    if WRITES:
        w_next = tl.load(w_ptr + step, mask=inside, other=0)
    for back in range(S):
        dy = dh.to(tl.float32) + dy_rec
        keep = a
        z = z_next.to(tl.float32)
        o = o_next.to(tl.float32)
        gf = gf_next.to(tl.float32)
        w = w_next.to(tl.float32)
        step -= HD
        earlier = inside & (back + 1 < S)
        before = tl.load(u_ptr + step, mask=earlier, other=0).to(tl.float32)
        dh = tl.load(dh_ptr + step, mask=earlier, other=0)
        a = tl.load(a_ptr + step, mask=earlier, other=0)
        z_next = tl.load(z_ptr + step, mask=earlier, other=0)
        o_next = tl.load(o_ptr + step, mask=earlier, other=0)
        gf_next = tl.load(gf_ptr + step, mask=earlier, other=0)
        w_next = gf_next
        if WRITES:
            w_next = tl.load(w_ptr + step, mask=earlier, other=0)
        if back + 1 == S:
            before = u_first
        if NORMALISER:
            du += dy * o
            d_o = dy * u * o * (1 - o)
            d_z = du * keep * (1 - z * z)
            d_i = du * keep * (1 - keep) * (z - before) + dL * keep
            dL -= d_i
            d_f = dL * gf
            if SIGMOID:
                d_i *= w
            du *= 1 - keep
        else:
            squashed = _tanh(u)
            du += dy * o * (1 - squashed * squashed)
            d_o = dy * squashed * o * (1 - o)
            if SIGMOID:
                d_z = du * (1 - w) * (1 - z * z)
                d_i = du * (1 - w) * z * w
            else:
                d_z = du * w * (1 - z * z)
                d_i = du * w * z
            d_f = du * before * keep * gf
            du *= keep
        u = before
        at = dx_ptr + dx_at
        tl.store(at, d_i.to(dtype), mask=inside)
        tl.store(at + HD, d_f.to(dtype), mask=inside)
        tl.store(at + 2 * HD, d_z.to(dtype), mask=inside)
        tl.store(at + 3 * HD, d_o.to(dtype), mask=inside)
        dx_at -= 4 * HD
        if MIXES:
            dy_rec = tl.zeros([ROWS, WIDTH], tl.float32)
            if CHIP:
                # Two sums: half as long a chain of products that wait for each other.
                other = tl.dot(d_f.to(dtype), r_f, dy_rec, input_precision=PRECISION)
                dy_rec = tl.dot(d_i.to(dtype), r_i, dy_rec, input_precision=PRECISION)
                other = tl.dot(d_o.to(dtype), r_o, other, input_precision=PRECISION)
                dy_rec = tl.dot(d_z.to(dtype), r_z, dy_rec, input_precision=PRECISION)
                dy_rec += other
            else:
                SIZE: tl.constexpr = ROWS * WIDTH
                turn = buffer_ptr + (back % 2) * (4 * SIZE)
                tl.store(turn + own, d_i.to(dtype))
                tl.store(turn + SIZE + own, d_f.to(dtype))
                tl.store(turn + 2 * SIZE + own, d_z.to(dtype))
                tl.store(turn + 3 * SIZE + own, d_o.to(dtype))
                tl.debug_barrier()
                for gate in tl.static_range(4):
                    dy_rec = _streamed(
                        dy_rec, turn + gate * SIZE, r_ptr, head, gate, D, ROWS, WIDTH, SLICE, True, PRECISION
                    )
    tl.store(dy0_ptr + state, dy_rec, mask=inside)
    tl.store(du0_ptr + state, du, mask=inside)
    tl.store(dl0_ptr + state, dL, mask=inside)
