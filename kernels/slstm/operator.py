"""The sLSTM cell over whole sequences: the public operator and the choice of backend."""

import torch
from torch import Tensor

from kernels.backends import choose_backend
from kernels.shapes import expect_shape
from kernels.slstm import loop, triton_op  # noqa: F401 (register the operators)
from kernels.slstm.configs import MAX_WIDTH
from kernels.slstm.reference import InputGate, State, compute_dtype, from_average, to_average


def slstm(
    x: Tensor,
    R: Tensor | None,
    b: Tensor | None = None,
    *,
    initial_state: State | None = None,
    return_final_state: bool = False,
    input_gate: InputGate = "exp",
    normaliser: bool = True,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, State]:
    """The sLSTM cell (arXiv:2405.04517, eqs. 8 to 18) over a sequence, differentiable once.

    x (B, S, 4, H, D): what the tokens contribute to the input, forget, cell and output gate, in this order,
    before their activations. R (H, D, 4, D): what head h adds to them from its last output, y R[h]; None
    mixes nothing. b (H, 4, D): biases. h (B, S, H, D) has the dtype of x; gates and states are computed in
    float32 at least.

    `input_gate` is the activation of the first gate. Without `normaliser` the output is o tanh(c): with
    sigmoid gates, an LSTM whose recurrent weights are block-diagonal. `backend` as in `kernels.backends`; a
    float64 x takes the reference.

    Raises:
        ValueError: shapes or options that do not fit, by name.
    """
    _check(x, R, b, initial_state, input_gate)
    state: tuple[Tensor | None, ...] = (None, None, None)
    if initial_state is not None:
        wide = State(*(part.to(compute_dtype(x)) for part in initial_state))
        state = to_average(wide, normaliser)
    chosen = choose_backend(backend, x.device)
    if chosen == "reference" or x.dtype == torch.float64:
        h, u, L, *_ = torch.ops.isoflop.slstm_loop(x, R, b, *state, input_gate == "sigmoid", normaliser)
    else:
        _check_for_kernels(x)
        h, u, L = _by_kernels(x, R, b, state, input_gate == "sigmoid", normaliser)
    if not return_final_state:
        return h
    return h, from_average(h[:, -1].to(u.dtype), u, L, normaliser)


def _by_kernels(
    x: Tensor,
    R: Tensor | None,
    b: Tensor | None,
    state: tuple[Tensor | None, ...],
    sigmoid: bool,
    normaliser: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """h, final u and L. Under autocast x and R take its dtype."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    heads, width = x.shape[-2:]
    b = x.new_zeros(heads, 4, width, dtype=torch.float32) if b is None else b.float()
    first = [None if part is None else part.float() for part in state]
    R = None if R is None else R.to(x.dtype)
    saves = torch.is_grad_enabled() and any(
        part is not None and part.requires_grad for part in (x, R, b, *first)
    )
    h, u1, L1, *_ = torch.ops.isoflop.slstm_forward(x, R, b, *first, sigmoid, normaliser, saves)
    return h, u1, L1


def _check_for_kernels(x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"x is {x.dtype}: the Triton kernels take float32, bfloat16 or float16")
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"heads of {x.shape[-1]} channels: the Triton kernels take at most {MAX_WIDTH}")


def _check(x: Tensor, R: Tensor | None, b: Tensor | None, state: State | None, input_gate: str) -> None:
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f'input_gate = {input_gate!r}: must be "exp" or "sigmoid"')
    if x.ndim != 5 or x.shape[2] != 4 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}: must be (B, S, 4, H, D), none of them 0")
    batch, _, _, heads, width = x.shape
    expect_shape("R", R, (heads, width, 4, width))
    expect_shape("b", b, (heads, 4, width))
    for name, part in zip(State._fields, state or (None,) * 4, strict=True):
        expect_shape(f"initial_state {name}", part, (batch, heads, width))
