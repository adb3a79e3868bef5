"""The sLSTM cell and its exact gradient as a loop of torch operations: runs everywhere, in any dtype.

The form is that of the Triton kernels. The paper's c, n, m enter only as u = c / n and L = m + log n, so a
step is a moving average whose weight is a sigmoid, and needs no stabiliser:

    a = sigmoid(log i - log f - L)      u = u + a (z - u)      L = log(i + f exp(L))      y = o u

and backward, with du, dL the gradients of what the step leaves behind:

    du += o dy;  dz = a du;  ds = a (1 - a) (z - u_before) du
    d log i = ds + a dL;  dL_before = d log f = dL - d log i;  du_before = (1 - a) du

Without a normaliser it is an LSTM step: c = f c + i z, y = o tanh(c). Sums over time (dR, db) are one product
after the loop. As operators both passes are opaque to `torch.compile`: one graph for all lengths.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.slstm.reference import compute_dtype


@torch.library.custom_op("isoflop::slstm_loop", mutates_args=())
def loop(
    x: Tensor,
    R: Tensor | None,
    b: Tensor | None,
    y0: Tensor | None,
    u0: Tensor | None,
    L0: Tensor | None,
    sigmoid: bool,
    normaliser: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h (B, S, H, D), final u and L (B, H, D); then what `loop_backward` reads, time and head first: raw
    gates (S, H, B, 4, D), u of all steps and before the first (S + 1, H, B, D), a (S, H, B, D)."""
    dtype = compute_dtype(x)
    batch, length, _, heads, width = x.shape
    raw = x.to(dtype).permute(1, 3, 0, 2, 4).clone(memory_format=torch.contiguous_format)
    if b is not None:
        raw += b.to(dtype)[:, None]
    gates = raw.flatten(3)
    weights = None if R is None else R.to(dtype).flatten(2)
    y, u_first, L = (
        raw.new_full((heads, batch, width), none) if given is None else given.to(dtype).transpose(0, 1)
        for given, none in ((y0, 0.0), (u0, 0.0), (L0, -torch.inf))
    )
    u = raw.new_empty(length + 1, heads, batch, width)
    a, h = u.new_empty(length, heads, batch, width), u.new_empty(length, heads, batch, width)
    u[0] = u_first
    if not normaliser:
        L = torch.zeros_like(L)
    for t in range(length):
        if weights is not None:
            gates[t].baddbmm_(y, weights)
        i, f, z, o = raw[t].unbind(-2)
        log_i = F.logsigmoid(i) if sigmoid else i
        z = z.tanh()
        if normaliser:
            log_f = F.logsigmoid(f).add_(L)
            torch.sigmoid(log_i - log_f, out=a[t])
            L = torch.logaddexp(log_i, log_f)
            torch.lerp(u[t], z, a[t], out=u[t + 1])
            y = torch.mul(o.sigmoid(), u[t + 1], out=h[t])
        else:
            torch.sigmoid(f, out=a[t])
            torch.addcmul(log_i.exp() * z, a[t], u[t], out=u[t + 1])
            y = torch.mul(o.sigmoid(), u[t + 1].tanh(), out=h[t])
    # Copies: an operator returns nothing that shares memory.
    final = (part.transpose(0, 1).clone(memory_format=torch.contiguous_format) for part in (u[-1], L))
    return h.permute(2, 0, 1, 3).to(x.dtype).contiguous(), *final, raw, u, a  # type: ignore[return-value]


@loop.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    batch, length, _, heads, width = x.shape
    state = x.new_empty(batch, heads, width, dtype=compute_dtype(x))
    raw = state.new_empty(length, heads, batch, 4, width)
    u, a = (state.new_empty(steps, heads, batch, width) for steps in (length + 1, length))
    return x.new_empty(batch, length, heads, width), state, torch.empty_like(state), raw, u, a


@torch.library.custom_op("isoflop::slstm_loop_backward", mutates_args=())
def loop_backward(
    dh: Tensor,
    du1: Tensor,
    dL1: Tensor,
    R: Tensor | None,
    y0: Tensor | None,
    h: Tensor,
    raw: Tensor,
    u: Tensor,
    a: Tensor,
    sigmoid: bool,
    normaliser: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx in the dtype of h; dR (H, D, 4, D; empty without R) and db (H, 4, D), dy0, du0, dL0 in that of the
    computation."""
    dtype, (length, heads, _, _, width) = raw.dtype, raw.shape
    i, f, z, o = raw.unbind(-2)
    z, o = z.tanh(), o.sigmoid()
    not_f, before, after = (-f).sigmoid(), u[:-1], u[1:]
    not_i = (-i).sigmoid() if sigmoid else None
    squashed = after if normaliser else after.tanh()
    from_y = o if normaliser else o * (1 - squashed * squashed)
    to_o = squashed * o * (1 - o)
    if normaliser:
        to_z, to_s = a * (1 - z * z), a * (1 - a) * (z - before)
    else:
        write = i.exp() if not_i is None else 1 - not_i
        to_z, to_i, to_f = write * (1 - z * z), write * z, a * not_f * before
        if not_i is not None:
            to_i = to_i * not_i
    d_raw = torch.empty_like(raw)
    flat = d_raw.flatten(3)
    back = None if R is None else R.to(dtype).flatten(2).transpose(1, 2)
    dy_all = dh.to(dtype).permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)
    du, dL = (part.to(dtype).transpose(0, 1).contiguous() for part in (du1, dL1))
    if not normaliser:
        dL = torch.zeros_like(du)
    dy_rec = torch.zeros_like(du)
    for t in range(length - 1, -1, -1):
        dy = dy_all[t].add_(dy_rec)
        du = torch.addcmul(du, dy, from_y[t])
        d_i, d_f, d_z, d_o = d_raw[t].unbind(-2)
        torch.mul(dy, to_o[t], out=d_o)
        torch.mul(du, to_z[t], out=d_z)
        if normaliser:
            d_log_i = torch.addcmul(du * to_s[t], dL, a[t])
            dL = dL - d_log_i
            torch.mul(dL, not_f[t], out=d_f)
            torch.mul(d_log_i, 1.0 if not_i is None else not_i[t], out=d_i)
            du = torch.addcmul(du, du, a[t], value=-1)
        else:
            torch.mul(du, to_i[t], out=d_i)
            torch.mul(du, to_f[t], out=d_f)
            du = du * a[t]
        if back is not None:
            dy_rec = torch.bmm(flat[t], back)
    dR = raw.new_empty(0)
    if R is not None:
        first = torch.zeros_like(du) if y0 is None else y0.to(dtype).transpose(0, 1)
        past = torch.cat([first[None], h[:, :-1].to(dtype).permute(1, 2, 0, 3)])
        dR = torch.einsum("shbd,shbe->hde", past, flat).view(heads, width, 4, width)
    dx = d_raw.permute(2, 0, 3, 1, 4).to(h.dtype).contiguous()
    states = (part.transpose(0, 1).contiguous() for part in (dy_rec, du, dL))
    return dx, dR, d_raw.sum((0, 2)), *states  # type: ignore[return-value]


@loop_backward.register_fake
def _(
    dh: Tensor, du1: Tensor, dL1: Tensor, R: Tensor | None, y0: Tensor | None, h: Tensor, raw: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    length, heads, batch, _, width = raw.shape
    state = raw.new_empty(batch, heads, width)
    dR = raw.new_empty(0) if R is None else raw.new_empty(heads, width, 4, width)
    db = raw.new_empty(heads, 4, width)
    others = (torch.empty_like(state) for _ in range(2))
    return h.new_empty(batch, length, 4, heads, width), dR, db, state, *others


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, R, b, y0, u0, L0, ctx.sigmoid, ctx.normaliser = inputs
    h, _, _, *saved = output
    ctx.save_for_backward(R, b, y0, u0, L0, h, *saved)
    ctx.mark_non_differentiable(*saved)


def _differentiate(ctx: Any, dh: Tensor, du1: Tensor, dL1: Tensor, *_: Any) -> tuple[Any, ...]:
    R, b, y0, u0, L0, h, *saved = ctx.saved_tensors
    dx, dR, db, *d_state = torch.ops.isoflop.slstm_loop_backward(
        dh, du1, dL1, R, y0, h, *saved, ctx.sigmoid, ctx.normaliser
    )
    d_first = [
        None if part is None else grad.to(part.dtype)
        for part, grad in zip((y0, u0, L0), d_state, strict=True)
    ]
    return (
        dx, None if R is None else dR.to(R.dtype), None if b is None else db.to(b.dtype), *d_first, None, None
    )  # fmt: skip


loop.register_autograd(_differentiate, setup_context=_setup_context)
