"""The sLSTM cell as the paper writes it (arXiv:2405.04517, eqs. 8 to 18), differentiated by autograd.

It is the truth that the operator and its kernels are tested against; they compute in another form (`loop`).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

InputGate = Literal["exp", "sigmoid"]


class State(NamedTuple):
    """What a sequence leaves behind, each part (B, H, D), in float32 at least.

    The paper's c, n and m are units of one another: only c / n and exp(m) n count, and those are kept.
    """

    y: Tensor
    """The last output."""
    cell: Tensor
    """c / n; without a normaliser, c."""
    log_norm: Tensor
    """m + log n, minus infinity for an empty memory; without a normaliser, zeros."""


def empty_state(batch: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> State:
    """Of a sequence that has not begun."""
    zeros = torch.zeros(batch, heads, width, dtype=dtype, device=device)
    return State(zeros, zeros, torch.full_like(zeros, -torch.inf))


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
    y, c = state.y.to(dtype), state.cell.to(dtype)
    begun = (state.log_norm > -torch.inf).to(dtype)
    n, m = begun, torch.where(begun > 0, state.log_norm.to(dtype), 0.0)
    if not normaliser:
        c, n, m = state.cell.to(dtype), torch.zeros_like(c), torch.zeros_like(c)
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
    final = State(y, c / n, m + n.log()) if normaliser else State(y, c, m)
    return torch.stack(h, 1).to(x.dtype), final
