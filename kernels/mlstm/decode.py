"""The mLSTM decode step: one token a sequence, the state updated in place."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from kernels.backends import choose_backend
from kernels.mlstm.norm_gate import normalise_heads
from kernels.mlstm.reference import InputGate, State, recurrent_step
from kernels.shapes import expect_shape

_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def mlstm_step(
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
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    ogate: Tensor | None = None,
    arrivals: Tensor | None = None,
    chained: bool = False,
    backend: str | None = None,
) -> Tensor:
    """One step of the mLSTM cell (arXiv:2405.04517, eqs. 19 to 27): returns h (B, H, V), moves `state` on.

    q, k (B, H, K); v (B, H, V); i, f (B, H) before their activations, best in float32: nothing here rounds
    them, but a bfloat16 one was. `state` is C (B, H, K, V) in float32 or bfloat16, n (B, H, K) and m (B, H)
    in float32, all contiguous. Computes in float32 (with a float64 state in float64, on the reference
    alone). h has the dtype of v.

    `norm_weight` (H V) adds LayerNorm over the V channels of a head (mean subtracted, no bias), `ogate` (B,
    H, V) the product with its sigmoid, last. `arrivals`, int32 zeros (B H) that are zeros again afterwards,
    spare a step on the GPU the kernel that fills its own (1.3 us): for steps that run one after the other,
    never for two at once. With them, `chained` makes the step a link in a chain of
    dependent launches (`kernels.dependent` has the conditions). `backend` as in `kernels.backends`. No
    gradient: decoding needs none.

    Raises:
        ValueError: shapes, dtypes or strides that do not fit, by name.
    """
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f'input_gate = {input_gate!r}: must be "exp" or "sigmoid"')
    C, n, m = state
    _check(q, k, v, i, f, C, n, m, norm_weight, ogate)
    if arrivals is not None and (arrivals.dtype != torch.int32 or arrivals.numel() != m.numel()):
        raise ValueError(
            f"arrivals is {arrivals.dtype} {tuple(arrivals.shape)}: must be int32 ({m.numel()},)"
        )
    return _step(
        q,
        k,
        v,
        i,
        f,
        C,
        n,
        m,
        norm_weight,
        ogate,
        eps,
        gate_soft_cap,
        input_gate,
        norm_eps,
        backend,
        arrivals,
        chained,
    )


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step does beside its inputs and state, as `mlstm_step` names it."""

    eps: float
    gate_soft_cap: float | None
    input_gate: InputGate
    norm_weight: Tensor | None
    norm_eps: float
    ogate: Tensor | None


@torch.library.custom_op("isoflop::mlstm_step", mutates_args=("C", "n", "m", "arrivals"))
def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor,
    n: Tensor,
    m: Tensor,
    norm_weight: Tensor | None,
    ogate: Tensor | None,
    eps: float,
    gate_soft_cap: float | None,
    input_gate: str,
    norm_eps: float,
    backend: str | None,
    arrivals: Tensor | None,  # without a default: PyTorch 2.11 looks for it where the dispatcher left it out
    chained: bool,
) -> Tensor:
    options = StepOptions(
        eps=eps,
        gate_soft_cap=gate_soft_cap,
        input_gate=cast(InputGate, input_gate),
        norm_weight=norm_weight,
        norm_eps=norm_eps,
        ogate=ogate,
    )
    if choose_backend(backend, q.device) == "reference":
        return _reference(q, k, v, i, f, (C, n, m), options)
    return _triton(q, k, v, i, f, (C, n, m), options, arrivals, chained)


@_step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(v.shape)


def _reference(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, options: StepOptions
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        wide = v.to(torch.promote_types(v.dtype, torch.float32))
        h, new = recurrent_step(
            q, k, wide, i, f, state,
            eps=options.eps, gate_soft_cap=options.gate_soft_cap, input_gate=options.input_gate,
        )  # fmt: skip
        for old, value in zip(state, new, strict=True):
            old.copy_(value)
        if options.norm_weight is not None:
            h = normalise_heads(h, options.norm_weight, options.norm_eps, v.dtype)
        if options.ogate is not None:
            h = h * options.ogate.to(h.dtype).sigmoid()
    return h.to(v.dtype).contiguous()


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: State,
    options: StepOptions,
    arrivals: Tensor | None,
    chained: bool,
) -> Tensor:
    from kernels.mlstm.decode_triton import launch_step

    if torch.float64 in (state[0].dtype, q.dtype, k.dtype, v.dtype):
        raise ValueError('float64 runs on the reference alone: pass backend="reference"')
    weight, ogate = options.norm_weight, options.ogate
    options = replace(
        options,
        norm_weight=None if weight is None else weight.contiguous(),
        ogate=None if ogate is None else _last_contiguous(ogate),
    )
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        q, k, v = _last_contiguous(q), _last_contiguous(k), _last_contiguous(v)
        return launch_step(q, k, v, i, f, state, options, arrivals, chained)


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _check(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C: Tensor, n: Tensor, m: Tensor,
    norm_weight: Tensor | None, ogate: Tensor | None,
) -> None:  # fmt: skip
    if q.ndim != 3 or v.ndim != 3:
        raise ValueError(f"q {tuple(q.shape)} and v {tuple(v.shape)}: must be (B, H, K) and (B, H, V)")
    batch, heads, width = q.shape
    value_width = v.shape[-1]
    expect_shape("k", k, (batch, heads, width))
    expect_shape("v", v, (batch, heads, value_width))
    expect_shape("i", i, (batch, heads))
    expect_shape("f", f, (batch, heads))
    expect_shape("state C", C, (batch, heads, width, value_width))
    expect_shape("state n", n, (batch, heads, width))
    expect_shape("state m", m, (batch, heads))
    expect_shape("ogate", ogate, (batch, heads, value_width))
    if norm_weight is not None and norm_weight.numel() != heads * value_width:
        raise ValueError(
            f"norm_weight has {norm_weight.numel()} entries: must have H V = {heads * value_width}"
        )
    if C.dtype not in _STATE_DTYPES:
        raise ValueError(f"state C is {C.dtype}: must be float32 or bfloat16")
    scale_dtype = torch.float64 if C.dtype == torch.float64 else torch.float32
    for name, part in (("n", n), ("m", m)):
        if part.dtype != scale_dtype:
            raise ValueError(f"state {name} is {part.dtype}: must be {scale_dtype}")
    if not (C.is_contiguous() and n.is_contiguous() and m.is_contiguous()):
        raise ValueError("the state is updated in place: C, n and m must be contiguous")
