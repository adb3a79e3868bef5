"""The reference as one node of a graph, for `torch.compile`.

Its layout of chunks is plain Python that depends on the length, so a compiler would trace it anew for every
length, or refuse. As an operator it is opaque: one graph for all batches and lengths. The backward pass runs
the forward pass again, and so costs more time than the reference outside a graph, and less memory.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from kernels.mlstm.reference import State, compute_dtype, mlstm_reference


@torch.library.custom_op("isoflop::mlstm_reference", mutates_args=())
def reference_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    cu_seqlens: Tensor | None,
    eps: float,
    gate_soft_cap: float | None,
    input_gate: str,
    exact_norm: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h and the final C, n, m; arguments as `mlstm_reference`."""
    options = (cu_seqlens, eps, gate_soft_cap, input_gate, exact_norm, chunk_size)
    return tuple(x.contiguous() for x in _reference([q, k, v, i, f, C0, n0, m0], *options))  # type: ignore[return-value]


@reference_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C0: Tensor | None, n0: Tensor | None,
    m0: Tensor | None, cu_seqlens: Tensor | None, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = v.new_empty(rows, *q.shape[2:], v.shape[-1], dtype=compute_dtype(q, k, v, i, f))
    return v.new_empty(v.shape), state, state.new_empty(state.shape[:3]), state.new_empty(state.shape[:2])


@torch.library.custom_op("isoflop::mlstm_reference_backward", mutates_args=())
def _backward_op(
    dh: Tensor,
    dC: Tensor,
    dn: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    cu_seqlens: Tensor | None,
    eps: float,
    gate_soft_cap: float | None,
    input_gate: str,
    exact_norm: bool,
    chunk_size: int,
) -> list[Tensor]:
    """Gradients of all inputs that are there."""
    options = (cu_seqlens, eps, gate_soft_cap, input_gate, exact_norm, chunk_size)

    def differentiate() -> list[Tensor]:
        inputs = [None if x is None else x.detach().requires_grad_() for x in (q, k, v, i, f, C0, n0, m0)]
        with torch.enable_grad():
            h, C, n, _ = _reference(inputs, *options)
        leaves = [x for x in inputs if x is not None]
        grads = torch.autograd.grad((h, C, n), leaves, (dh, dC, dn), materialize_grads=True)
        return [grad.contiguous() for grad in grads]

    with ThreadPoolExecutor(1) as fresh:  # an operator's body excludes autograd in its own thread
        return fresh.submit(differentiate).result()


@_backward_op.register_fake
def _(dh: Tensor, dC: Tensor, dn: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in rest[:8] if x is not None]


def _reference(
    inputs: list[Any],
    cu_seqlens: Tensor | None,
    eps: float,
    gate_soft_cap: float | None,
    input_gate: Any,
    exact_norm: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *sequence, C0, n0, m0 = inputs
    initial: State | None = None if C0 is None else (C0, n0, m0)
    h, state = mlstm_reference(
        *sequence, initial_state=initial, cu_seqlens=cu_seqlens, return_final_state=True, eps=eps,
        gate_soft_cap=gate_soft_cap, input_gate=input_gate, exact_norm=exact_norm, chunk_size=chunk_size,
    )  # fmt: skip
    return h, *state  # type: ignore[has-type]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.options = inputs[9:]
    ctx.mark_non_differentiable(output[3])


def _differentiate(ctx: Any, dh: Tensor, dC: Tensor, dn: Tensor, dm: Tensor) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    grads = iter(_backward_op(dh, dC, dn, *inputs, *ctx.options))
    return *(None if x is None else next(grads) for x in inputs[:8]), *[None] * 6


reference_op.register_autograd(_differentiate, setup_context=_setup_context)
