"""The mLSTM cell in plain PyTorch: the measure of the kernels, and what runs where there is no GPU.

The memory of a head is a matrix C (K, V) with a normaliser n (K) and a scale m (arXiv:2405.04517):

    m_t = max(logsigmoid(f_t) + m_{t-1}, i_t)
    C_t = exp(logsigmoid(f_t) + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T     n_t: the same with v = 1
    h_t = (q_t C_t) / (max(|q_t n_t|, exp(-m_t)) + eps)                               q carries 1 / sqrt(K)

Three remarks make the code below short.

- The normaliser is one more value channel that is always 1: the state is [C | n], shape (K, V + 1), and one
  gated linear attention yields numerator and normaliser together.
- m depends on the gates only. Within a chunk, with b the running sum of the log forget gates, x = i - b and
  M the scale before the chunk, m_t = b_t + c_t where c_t = max(M, max_{j<=t} x_j). Every weight is
  exp(x_j - c_t) or exp(M - c_t), at most 1; the last row: those in the state at the end of the chunk.
- m is a unit, not a quantity: what it measures is exp(m) [C | n], and h does not depend on it (but for eps).
  Gradients hold m constant. So a returned m carries no gradient, and the gradient of an initial m is the one
  that follows from exp(m) [C | n]: exact for every loss of h and of the physical states.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.mlstm.reference_layout import documents_layout, rows_layout
from kernels.shapes import expect_shape

State = tuple[Tensor, Tensor, Tensor]
"""C (B, H, K, V), n (B, H, K), m (B, H): the physical state is exp(m) C and exp(m) n. Empty: all zero."""

InputGate = Literal["exp", "sigmoid"]


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    initial_state: State | None = None,
    cu_seqlens: Tensor | None = None,
    return_final_state: bool = False,
    eps: float = 1e-6,
    gate_soft_cap: float | None = None,
    input_gate: InputGate = "exp",
    exact_norm: bool = True,
    chunk_size: int = 64,
) -> Tensor | tuple[Tensor, State]:
    """The chunkwise-parallel form, differentiable once, for any sequence length.

    q, k (B, S, H, K); v (B, S, H, V); i, f (B, S, H) before their activations. Computes in float32, or in
    float64 if an input is; h (B, S, H, V) has the dtype of v, the states that of the computation.

    `cu_seqlens` (documents + 1) packs documents into one row (B = 1): each starts from its own row of
    `initial_state` (documents, ...), and the final state has one row a document. `gate_soft_cap` maps both
    gates by cap tanh(x / cap) first; `exact_norm=False` leaves the normaliser out of the gradient, as the
    published kernels do.

    `chunk_size` is the longest chunk. It alters the time and not the result; a short sequence takes shorter
    ones, about twice the square root of its length, which balances work within and between them.
    """
    _check(q, k, v, i, f, initial_state, cu_seqlens, chunk_size)
    batch, length, heads, _ = q.shape
    dtype = compute_dtype(q, k, v, i, f)
    with torch.autocast(q.device.type, enabled=False):
        log_i, log_f = activate_gates(i.to(dtype), f.to(dtype), gate_soft_cap, input_gate)
        values = F.pad(v.to(dtype), (0, 1), value=1.0)
        if cu_seqlens is None:
            layout = rows_layout(batch, length, chunk_size)
        else:
            layout = documents_layout(cu_seqlens, chunk_size)
        state, m_start = _join_state(initial_state, layout.rows, heads, k.shape[-1], values)
        y, m, state, m_end = _GatedLinearAttention.apply(
            layout.split(q.to(dtype) * q.shape[-1] ** -0.5),
            layout.split(k.to(dtype)),
            layout.split(values),
            layout.split_gate(log_i, padding=-torch.inf),
            layout.split_gate(log_f, padding=0.0),
            layout.order_rows(state),
            layout.order_rows(m_start),
            layout.counts,
        )
        h = layout.join(_normalise(y, m, eps, exact_norm)).to(v.dtype)
    if not return_final_state:
        return h
    state, m_end = layout.restore_rows(state), layout.restore_rows(m_end)
    return h, (state[..., :-1], state[..., -1], m_end)


def mlstm_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    initial_state: State | None = None,
    return_final_state: bool = False,
    eps: float = 1e-6,
    gate_soft_cap: float | None = None,
    input_gate: InputGate = "exp",
) -> Tensor | tuple[Tensor, State]:
    """The same function step by step, by `recurrent_step` and autograd: slow, and plain to see."""
    dtype = compute_dtype(q, k, v, i, f)
    (batch, length, heads, width), value_width = q.shape, v.shape[-1]
    state = initial_state or empty_state(batch, heads, width, value_width, dtype=dtype, device=q.device)
    outputs = []
    for t in range(length):
        h, state = recurrent_step(
            q[:, t], k[:, t], v[:, t], i[:, t], f[:, t], state,
            eps=eps, gate_soft_cap=gate_soft_cap, input_gate=input_gate,
        )  # fmt: skip
        outputs.append(h)
    stacked = torch.stack(outputs, 1) if outputs else torch.empty_like(v)
    return (stacked, state) if return_final_state else stacked


def recurrent_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: State,
    *,
    eps: float = 1e-6,
    gate_soft_cap: float | None = None,
    input_gate: InputGate = "exp",
) -> tuple[Tensor, State]:
    """One step: q, k (B, H, K); v (B, H, V); i, f (B, H). Returns h (B, H, V) and the next state, a new one.

    Its gradients are autograd's, through m too: they differ from the above by what eps sees of m.
    """
    C, n, m = state
    dtype = torch.promote_types(compute_dtype(q, k, v, i, f), C.dtype)
    with torch.autocast(q.device.type, enabled=False):
        log_i, log_f = activate_gates(i.to(dtype), f.to(dtype), gate_soft_cap, input_gate)
        m_next = torch.maximum(log_f + m, log_i)
        forget, write = (log_f + m - m_next).exp(), (log_i - m_next).exp()
        queries, keys, values = q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype), v.to(dtype)
        C = forget[..., None, None] * C + (write[..., None] * keys)[..., None] * values[..., None, :]
        n = forget[..., None] * n + write[..., None] * keys
        norm = torch.maximum((queries * n).sum(-1).abs(), (-m_next).exp()) + eps
        h = (queries[..., None, :] @ C).squeeze(-2) / norm[..., None]
    return h.to(v.dtype), (C, n, m_next)


def empty_state(
    batch: int,
    heads: int,
    width: int,
    value_width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> State:
    """The state before the first token: zeros of the shapes of `State`."""
    return (
        torch.zeros(batch, heads, width, value_width, dtype=dtype, device=device),
        torch.zeros(batch, heads, width, dtype=dtype, device=device),
        torch.zeros(batch, heads, dtype=dtype, device=device),
    )


def activate_gates(
    i: Tensor, f: Tensor, soft_cap: float | None, input_gate: InputGate
) -> tuple[Tensor, Tensor]:
    """Logarithms of the activated input and forget gates, from their pre-activations."""
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f'input_gate = {input_gate!r}: must be "exp" or "sigmoid"')
    if soft_cap is not None:
        i, f = soft_cap * torch.tanh(i / soft_cap), soft_cap * torch.tanh(f / soft_cap)
    return (i if input_gate == "exp" else F.logsigmoid(i)), F.logsigmoid(f)


def _normalise(y: Tensor, m: Tensor, eps: float, exact_norm: bool) -> Tensor:
    """Numerators over max(|q n|, exp(-m)) + eps, the last channel of y being q n."""
    dot = y[..., -1] if exact_norm else y[..., -1].detach()
    norm = torch.maximum(dot.abs(), torch.exp(-m)) + eps
    return y[..., :-1] / norm[..., None]


# Chunks, in the order of `reference_layout`: at step n the first counts[n] rows are still running.


class _Gates(NamedTuple):
    """What a chunk needs to know of its gates; every weight is at most 1."""

    m: Tensor
    """(chunks, H, L): m_t."""
    inner: Tensor
    """(chunks, H, L, L): weight of token j in what token t reads; its last row: in the state at the end."""
    outer: Tensor
    """(chunks, H, L): weight of the state before the chunk; its last entry: in the state at the end."""
    m_end: Tensor
    """(rows, H)."""


def _weigh(log_i: Tensor, log_f: Tensor, m_start: Tensor, counts: list[int]) -> _Gates:
    b = log_f.cumsum(-1)
    x = log_i - b
    peak = x.cummax(-1).values
    before, m_end = torch.empty_like(b[..., 0]), m_start.clone()
    for running, part in _steps(counts):
        before[part] = m_end[running]
        m_end[running] = b[part, :, -1] + torch.maximum(before[part], peak[part, :, -1])
    c = torch.maximum(before[..., None], peak)
    inner = x[..., None, :] - c[..., :, None]
    inner.masked_fill_(_future(x.shape[-1], x.device), -torch.inf).exp_()
    return _Gates(m=b + c, inner=inner, outer=torch.exp(before[..., None] - c), m_end=m_end)


def _steps(counts: list[int]) -> list[tuple[slice, slice]]:
    """For each step, the rows that still run and the places of their chunks."""
    steps, offset = [], 0
    for count in counts:
        steps.append((slice(count), slice(offset, offset + count)))
        offset += count
    return steps


def _future(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)


class _GatedLinearAttention(torch.autograd.Function):
    """y_t = q_t S_t for the state S_t = exp(.) S_{t-1} + exp(.) k_t v_t^T in the unit m_t, chunk by chunk.

    The backward pass is explicit, since the gradients of the gates need no L x L matrix of their own: a log
    input gate scales k, so its gradient is k dk; the log forget gates up to t scale q_t and divide k_t.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_i: Tensor,
        log_f: Tensor,
        state: Tensor,
        m_start: Tensor,
        counts: list[int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates = _weigh(log_i, log_f, m_start, counts)
        last, keep = gates.inner[..., -1, :, None], gates.outer[..., -1, None, None]
        added = (k * last).transpose(-1, -2) @ v
        before, state_end = torch.empty_like(added), state.clone()
        for running, part in _steps(counts):
            before[part] = state_end[running]
            state_end[running] = torch.addcmul(added[part], keep[part], before[part])
        weights = (q @ k.transpose(-1, -2)) * gates.inner
        y = weights @ v + (q * gates.outer[..., None]) @ before
        ctx.save_for_backward(q, k, v, weights, gates.inner, gates.outer, before, state_end)
        ctx.counts = counts
        ctx.mark_non_differentiable(gates.m, gates.m_end)
        return y, gates.m, state_end, gates.m_end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _m: Tensor, dstate: Tensor, _m_end: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        q, k, v, weights, inner, outer, before, state_end = ctx.saved_tensors
        last, keep = inner[..., -1, :, None], outer[..., -1, None, None]
        read = outer[..., None]
        with torch.autocast(q.device.type, enabled=False):
            asked = (q * read).transpose(-1, -2) @ dy
            after, dstate = torch.empty_like(before), dstate.clone()
            end = torch.empty_like(
                outer[..., 0]
            )  # <S, dS> after each chunk: the gradient of all that decays it
            inner_product = (state_end * dstate).sum((-1, -2))
            for running, part in reversed(_steps(ctx.counts)):
                after[part], end[part] = dstate[running], inner_product[running]
                dstate[running] = torch.addcmul(asked[part], keep[part], after[part])
                inner_product[running] = (before[part] * dstate[running]).sum((-1, -2))
            dscores = (dy @ v.transpose(-1, -2)) * inner
            dq = dscores @ k + (dy @ before.transpose(-1, -2)) * read
            dk = dscores.transpose(-1, -2) @ q + (v @ after.transpose(-1, -2)) * last
            dv = weights.transpose(-1, -2) @ dy + (k * last) @ after
            di = (k * dk).sum(-1)
            df = _reverse_cumsum((q * dq).sum(-1) - di) + end[..., None]
        return dq, dk, dv, di, df, dstate, inner_product, None


def _reverse_cumsum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True) - x.cumsum(-1) + x


def _join_state(
    initial: State | None, rows: int, heads: int, width: int, values: Tensor
) -> tuple[Tensor, Tensor]:
    """[C | n] (rows, H, K, V + 1) and m (rows, H)."""
    if initial is None:
        zeros = values.new_zeros(rows, heads, width, values.shape[-1])
        return zeros, zeros[..., 0, 0]
    C, n, m = (part.to(values.dtype) for part in initial)
    return torch.cat([C, n[..., None]], -1), m


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if any of the inputs is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _check(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    state: State | None, cu_seqlens: Tensor | None, chunk_size: int,
) -> None:  # fmt: skip
    """Shapes, with a message that names the culprit."""
    if q.ndim != 4:
        raise ValueError(f"q has shape {tuple(q.shape)}: must be (B, S, H, K)")
    batch, length, heads, width = q.shape
    expect_shape("k", k, q.shape)
    expect_shape("v", v, (batch, length, heads, v.shape[-1]))
    expect_shape("i", i, (batch, length, heads))
    expect_shape("f", f, (batch, length, heads))
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}: must be positive")
    rows = batch
    if cu_seqlens is not None:
        rows = len(cu_seqlens) - 1
        if batch != 1:
            raise ValueError(f"cu_seqlens packs documents into one row, but the batch has {batch}")
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != length or (cu_seqlens.diff() < 0).any():
            raise ValueError(f"cu_seqlens must rise from 0 to S = {length}, got {cu_seqlens.tolist()}")
    if state is not None:
        shapes = ((rows, heads, width, v.shape[-1]), (rows, heads, width), (rows, heads))
        for name, part, shape in zip("Cnm", state, shapes, strict=True):
            expect_shape(f"initial_state {name}", part, shape)
