"""The sLSTM cell as the paper writes it (arXiv:2405.04517, eqs. 8 to 18), differentiated by autograd.

It is the truth that the operator and its kernels are tested against; they compute in another form (`loop`).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

InputGate = Literal["exp", "sigmoid"]


class State(NamedTuple):
    """What a sequence leaves behind, each part (B, H, D), in float32 at least; zeros are the beginning.

    m is a unit: what counts is exp(m) c and exp(m) n, so different states may be the same. Without a
    normaliser c is itself, and n and m are zeros.
    """

    y: Tensor
    """The last output."""
    c: Tensor
    n: Tensor
    m: Tensor


def empty_state(batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> State:
    """Of a sequence that has not begun."""
    return State(*(torch.zeros(batch, heads, width, dtype=dtype, device=device) for _ in State._fields))


def to_average(state: State, normaliser: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, u = c / n and L = m + log n, minus infinity of an empty memory; without a normaliser u = c."""
    y, c, n, m = state
    if not normaliser:
        return y, c, torch.zeros_like(c)
    some = torch.where(n == 0, 1.0, n)
    return y, torch.where(n == 0, 0.0, c / some), torch.where(n == 0, -torch.inf, m + some.log())


def from_average(y: Tensor, u: Tensor, L: Tensor, normaliser: bool) -> State:
    """The state in the unit in which n is 1."""
    return State(y, u, torch.ones_like(u) if normaliser else torch.zeros_like(u), L)


def compute_dtype(x: Tensor) -> torch.dtype:
    """In float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def slstm_recurrent(
    x: Tensor,
    R: Tensor | None,
    b: Tensor | None,
    *,
    initial_state: State | None = None,
    input_gate: InputGate = "exp",
    normaliser: bool = True,
) -> tuple[Tensor, State]:
    """h (B, S, H, D) and the final state, step by step; arguments as `kernels.slstm.slstm`."""
    dtype = compute_dtype(x)
    batch, _, _, heads, width = x.shape
    state = initial_state or empty_state(batch, heads, width, dtype, x.device)
    y, c, n, m = (part.to(dtype) for part in state)
    h = []
    for raw in x.to(dtype).unbind(1):
        if R is not None:
            raw = raw + torch.einsum("bhd,hdge->bghe", y, R.to(dtype))
        if b is not None:
            raw = raw + b.to(dtype).transpose(0, 1)
        i, f, z, o = raw.unbind(1)
        log_i = i if input_gate == "exp" else F.logsigmoid(i)
        z, o = z.tanh(), o.sigmoid()
        if normaliser:
            log_f = F.logsigmoid(f) + m
            m = torch.where(n == 0, log_i, torch.maximum(log_i, log_f))
            # Nothing is kept of an empty memory, however small the first input gate is.
            keep = torch.where(n == 0, 0.0, (log_f - m).clamp_max(0)).exp() * (n != 0)
            write = (log_i - m).exp()
            c, n = keep * c + write * z, keep * n + write
            y = o * c / n
        else:
            c = f.sigmoid() * c + log_i.exp() * z
            y = o * c.tanh()
        h.append(y)
    return torch.stack(h, 1).to(x.dtype), State(y, c, n, m)
