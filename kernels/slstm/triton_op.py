"""The Triton kernels as an operator of torch: shapes without a run, gradients, nothing saved without need."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("isoflop::slstm_forward", mutates_args=())
def slstm_forward(
    x: Tensor,
    R: Tensor | None,
    b: Tensor,
    y0: Tensor | None,
    u0: Tensor | None,
    L0: Tensor | None,
    sigmoid: bool,
    normaliser: bool,
    saves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, final u and L (float32), then what the backward pass reads (`launch.Saved`), empty unless `saves`.

    R in the dtype of x, b and the state in float32.
    """
    from kernels.slstm.check import checked_config
    from kernels.slstm.launch import forward

    state = None
    if y0 is not None and u0 is not None and L0 is not None:
        state = y0.contiguous(), u0.contiguous(), L0.contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    R = None if R is None else R.contiguous()
    with _on_device(x):
        config = checked_config(
            x, mixes=R is not None, starts=state is not None, sigmoid=sigmoid, normaliser=normaliser,
            trains=saves,
        )  # fmt: skip
        h, u1, L1, saved = forward(x, R, b.contiguous(), state, sigmoid, normaliser, saves, config)
    return h, u1, L1, *saved


@slstm_forward.register_fake
def _(
    x: Tensor, R: Tensor | None, b: Tensor, y0: Tensor | None, u0: Tensor | None, L0: Tensor | None,
    sigmoid: bool, normaliser: bool, saves: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, length, _, heads, width = x.shape
    state = x.new_empty(batch, heads, width, dtype=torch.float32)
    saved = _saved_like(x, saves, sigmoid, normaliser)
    return x.new_empty(batch, length, heads, width), state, torch.empty_like(state), *saved


@torch.library.custom_op("isoflop::slstm_backward", mutates_args=())
def slstm_backward(
    dh: Tensor,
    du1: Tensor,
    dL1: Tensor,
    R: Tensor | None,
    y0: Tensor | None,
    u0: Tensor | None,
    h: Tensor,
    a: Tensor,
    u: Tensor,
    z: Tensor,
    o: Tensor,
    not_f: Tensor,
    w: Tensor,
    sigmoid: bool,
    normaliser: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dR (empty without R) in the dtype of h; db and the gradients of the first state in float32."""
    from kernels.slstm.check import checked_config
    from kernels.slstm.launch import Saved, backward

    with _on_device(h):
        # The layout was tried with the forward pass: only the width and the dtype matter.
        like = h.unsqueeze(2)
        config = checked_config(
            like, mixes=R is not None, starts=u0 is not None, sigmoid=sigmoid, normaliser=normaliser,
            trains=True,
        )  # fmt: skip
        return backward(
            dh.contiguous(), du1.contiguous(), dL1.contiguous(), None if R is None else R.contiguous(), y0,
            None if u0 is None else u0.contiguous(), h, Saved(a, u, z, o, not_f, w), sigmoid, normaliser,
            config,
        )  # fmt: skip


@slstm_backward.register_fake
def _(
    dh: Tensor, du1: Tensor, dL1: Tensor, R: Tensor | None, y0: Tensor | None, u0: Tensor | None, h: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, length, heads, width = h.shape
    dR = h.new_empty(0) if R is None else R.new_empty(R.shape)
    db = h.new_empty(heads, 4, width, dtype=torch.float32)
    first = [du1.new_empty(du1.shape, dtype=torch.float32) for _ in range(3)]
    return h.new_empty(batch, length, 4, heads, width), dR, db, *first


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, R, _, y0, u0, _, ctx.sigmoid, ctx.normaliser, ctx.saves = inputs
    h, _, _, *saved = output
    ctx.save_for_backward(R, y0, u0, h, *saved)
    ctx.mark_non_differentiable(*saved)


def _differentiate(ctx: Any, dh: Tensor, du1: Tensor, dL1: Tensor, *_: Any) -> tuple[Any, ...]:
    if not ctx.saves:
        raise RuntimeError("slstm_forward ran without saves: there is nothing to go back by")
    R, y0, u0, h, *saved = ctx.saved_tensors
    dx, dR, db, *first = torch.ops.isoflop.slstm_backward(
        dh.to(h.dtype), du1, dL1, R, y0, u0, h, *saved, ctx.sigmoid, ctx.normaliser
    )
    if y0 is None:
        first = [None, None, None]
    return dx, None if R is None else dR, db, *first, None, None, None


slstm_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _saved_like(x: Tensor, saves: bool, sigmoid: bool, normaliser: bool) -> tuple[Tensor, ...]:
    from kernels.slstm.launch import saved_like

    return saved_like(x, saves, sigmoid, normaliser)


def _on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
