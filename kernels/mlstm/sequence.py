"""The mLSTM cell over whole sequences: the public operator, its registration with torch, and the choice of
backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backends import choose_backend
from kernels.mlstm import reference_op  # noqa: F401 (registers the operator)
from kernels.mlstm.reference import InputGate, State, mlstm_reference
from kernels.shapes import expect_shape


def mlstm(
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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, State]:
    """The mLSTM cell (arXiv:2405.04517, eqs. 19 to 27) over a sequence, differentiable once.

    q, k (B, S, H, K); v (B, S, H, V); i, f (B, S, H) before their activations, best in float32. h (B, S, H,
    V) has the dtype of v; q carries 1 / sqrt(K). Any strides will do as long as channels are contiguous;
    nothing is copied, but for the kernels heads whose width is no multiple of 16, which gain zeros.

    `initial_state` and the final state are C (B, H, K, V), n (B, H, K), m (B, H) in float32, the physical
    state being exp(m) times C and n. m is a unit: gradients hold it constant, which is exact for every loss
    of h and of physical states. `cu_seqlens` (documents + 1) packs documents into one row (B = 1), each with
    its own state.

    `gate_soft_cap` maps both gates by cap tanh(x / cap) first; `exact_norm=False` leaves the normaliser out
    of the gradient, as the published kernels do. `chunk_size` is the reference's; the kernels choose their
    own, and neither changes the function. `backend` as in `kernels.backends`. Under autocast q, k, v take its
    dtype, gates float32.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, by name.
    """
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f'input_gate = {input_gate!r}: must be "exp" or "sigmoid"')
    if choose_backend(backend, q.device) == "reference":
        if torch.compiler.is_compiling():
            parts = initial_state or (None, None, None)
            h, *final = torch.ops.isoflop.mlstm_reference(
                q, k, v, i, f, *parts, cu_seqlens, eps, gate_soft_cap, input_gate, exact_norm, chunk_size
            )
            return (h, (final[0], final[1], final[2])) if return_final_state else h
        return mlstm_reference(
            q, k, v, i, f, initial_state=initial_state, cu_seqlens=cu_seqlens,
            return_final_state=return_final_state, eps=eps, gate_soft_cap=gate_soft_cap,
            input_gate=input_gate, exact_norm=exact_norm, chunk_size=chunk_size,
        )  # fmt: skip
    _check(q, k, v, i, f, initial_state, cu_seqlens)
    K, V = q.shape[-1], v.shape[-1]
    q, k, v = _widen(q), _widen(k), _widen(v)
    C0, n0, m0 = (part.float() for part in initial_state) if initial_state else (None, None, None)
    if C0 is not None and n0 is not None:
        C0, n0 = _widen(_widen(C0).transpose(-1, -2)).transpose(-1, -2), _widen(n0)
    i, f = i.float(), f.float()
    arguments = (
        C0, n0, m0, cu_seqlens, return_final_state, eps, gate_soft_cap, input_gate == "sigmoid", exact_norm,
        K**-0.5,
    )  # fmt: skip
    if _intercepted(q, k, v, i, f):
        h, C, n, m, *_ = torch.ops.isoflop.mlstm_forward(q, k, v, i, f, *arguments)
    else:
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
        h, C, n, m = _Eager.apply(q, k, v, i, f, *arguments)
    if h.shape[-1] != V:
        h = h[..., :V]
    if return_final_state and C.shape[-2:] != (K, V):
        C, n = C[..., :K, :V], n[..., :K]
    return (h, (C, n, m)) if return_final_state else h


def _widen(x: Tensor) -> Tensor:
    """Zeros up to a multiple of 16 channels: rows of other widths cannot be copied to shared memory in
    whole words, and are read an element at a time."""
    missing = -x.shape[-1] % 16
    return F.pad(x, (0, missing)) if missing else x


def _forward_now(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C0: Tensor | None, n0: Tensor | None,
    m0: Tensor | None, cu_seqlens: Tensor | None, want_state: bool, eps: float, gate_soft_cap: float | None,
    sigmoid: bool, exact_norm: bool, scale: float,
) -> tuple[Any, ...]:  # fmt: skip
    """As `_forward`, with None for what is not wanted."""
    from kernels.mlstm.sequence_check import checked_config, described
    from kernels.mlstm.sequence_launch import forward
    from kernels.mlstm.sequence_shapes import Options

    q, k, v = (_contiguous_channels(x) for x in (q, k, v))
    options = Options(
        eps=eps, gate_soft_cap=gate_soft_cap, sigmoid=sigmoid, exact_norm=exact_norm, scale=scale
    )
    initial = None
    if C0 is not None and n0 is not None and m0 is not None:
        initial = (C0.contiguous(), n0.contiguous(), m0.contiguous())
    kind = {
        "packed": cu_seqlens is not None, "starts": initial is not None, "ends": want_state,
        "exact_norm": exact_norm,
    }  # fmt: skip
    with _on_device(q):
        config = checked_config(q, v, **kind)
        h, (C, n, m), saved = forward(
            q, k, v, i, f, initial, cu_seqlens, want_state, options, config,
            described=described(config, q, k, v, **kind),
        )  # fmt: skip
    return h, C, n, m, *saved


def _backward_now(
    dh: Tensor, dC1: Tensor | None, dn1: Tensor | None, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    has_initial: bool, cu_seqlens: Tensor | None, h: Tensor, want_state: bool, C: Tensor, n: Tensor,
    rows: Tensor, bounds: Tensor, norms: Tensor, eps: float, gate_soft_cap: float | None, sigmoid: bool,
    exact_norm: bool, scale: float,
) -> tuple[Any, ...]:  # fmt: skip
    """As `_backward`, with None for what there is not."""
    from kernels.mlstm.sequence_calls import describable
    from kernels.mlstm.sequence_check import checked_config, described
    from kernels.mlstm.sequence_launch import backward
    from kernels.mlstm.sequence_shapes import Options, Saved

    q, k, v, dh = (_contiguous_channels(x) for x in (q, k, v, dh))
    options = Options(
        eps=eps, gate_soft_cap=gate_soft_cap, sigmoid=sigmoid, exact_norm=exact_norm, scale=scale
    )
    d_final = None if dC1 is None or dn1 is None else (dC1.contiguous(), dn1.contiguous())
    saved = Saved(C, n, rows, bounds, norms)
    kind = {
        "packed": cu_seqlens is not None, "starts": has_initial, "ends": want_state, "exact_norm": exact_norm
    }  # fmt: skip
    with _on_device(q):
        config = checked_config(q, v, **kind)
        through = described(config, q, k, v, **kind)
        if through and not describable(dh):
            dh = dh.contiguous()
        return backward(
            dh, d_final, q, k, v, i, f, h, has_initial, cu_seqlens, saved, options, config, described=through
        )


def _intercepted(*tensors: Tensor) -> bool:
    """Whether something other than the device may see the operator: a compiler, a mode, a transform, a
    subclass. Where nothing does, the operator is called without torch's dispatcher, whose wrappers in Python
    take 0.2 to 0.4 ms a training step of one layer: more than the kernels of a small one."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors)
    )


class _Eager(torch.autograd.Function):
    """The operator for tensors that nothing intercepts; the same functions as the registered one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Any, ...]:
        output = _forward_now(*inputs)
        _setup_context(ctx, inputs, output)
        return output[:4]

    @staticmethod
    def backward(ctx: Any, *entering: Any) -> tuple[Any, ...]:
        # To be differentiated again, it must be the registered one: that says that it cannot be.
        return _differentiate(ctx, *entering, run=None if torch.is_grad_enabled() else _backward_now)


@torch.library.custom_op("isoflop::mlstm_forward", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    cu_seqlens: Tensor | None,
    want_state: bool,
    eps: float,
    gate_soft_cap: float | None,
    sigmoid: bool,
    exact_norm: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, final C, n (empty unless wanted), m; then what the backward pass reads (`sequence_shapes.Saved`)."""
    h, C, n, *rest = _forward_now(
        q, k, v, i, f, C0, n0, m0, cu_seqlens, want_state, eps, gate_soft_cap, sigmoid, exact_norm, scale
    )
    empty = q.new_empty(0, dtype=torch.float32)
    return h, empty if C is None else C, torch.empty_like(empty) if n is None else n, *rest


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C0: Tensor | None, n0: Tensor | None,
    m0: Tensor | None, cu_seqlens: Tensor | None, want_state: bool, eps: float, gate_soft_cap: float | None,
    sigmoid: bool, exact_norm: bool, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    from kernels.mlstm.sequence_check import checked_config
    from kernels.mlstm.sequence_shapes import Shape

    config = checked_config(  # sizes of what is saved depend on it
        q, v, packed=cu_seqlens is not None, starts=C0 is not None, ends=want_state, exact_norm=exact_norm
    )
    shape = Shape.of(q, v, cu_seqlens, config)
    C, n = shape.state(q) if want_state else (q.new_empty(0, dtype=torch.float32) for _ in range(2))
    m = q.new_empty(shape.sequences, shape.heads, dtype=torch.float32)
    return v.new_empty(v.shape), C, n, m, *shape.saved(q, config)


@torch.library.custom_op("isoflop::mlstm_backward", mutates_args=())
def _backward(
    dh: Tensor,
    dC1: Tensor | None,
    dn1: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    has_initial: bool,
    cu_seqlens: Tensor | None,
    h: Tensor,
    want_state: bool,
    C: Tensor,
    n: Tensor,
    rows: Tensor,
    bounds: Tensor,
    norms: Tensor,
    eps: float,
    gate_soft_cap: float | None,
    sigmoid: bool,
    exact_norm: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, di, df, dC0, dn0 (the last two empty without an initial state)."""
    *gradients, dC0, dn0 = _backward_now(
        dh, dC1, dn1, q, k, v, i, f, has_initial, cu_seqlens, h, want_state, C, n, rows, bounds, norms, eps,
        gate_soft_cap, sigmoid, exact_norm, scale,
    )  # fmt: skip
    empty = q.new_empty(0, dtype=torch.float32)
    dq, dk, dv, di, df = gradients
    return dq, dk, dv, di, df, empty if dC0 is None else dC0, torch.empty_like(empty) if dn0 is None else dn0


@_backward.register_fake
def _(
    dh: Tensor, dC1: Tensor | None, dn1: Tensor | None, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    has_initial: bool, cu_seqlens: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (rows, *q.shape[2:]) if has_initial else (0,)
    dC0 = q.new_empty((*shape, v.shape[-1]) if has_initial else shape, dtype=torch.float32)
    dn0 = q.new_empty(shape, dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (q, k, v, i, f)), dC0, dn0


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, i, f, C0, n0, _, cu_seqlens, want_state, *ctx.options = inputs
    ctx.want_state, ctx.has_initial = want_state, C0 is not None
    h, C, n, _, *saved = output
    ctx.state_shapes = (C.shape, n.shape) if ctx.want_state else None
    ctx.save_for_backward(q, k, v, i, f, C0, n0, cu_seqlens, h, *saved)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dh: Tensor | None, dC: Tensor | None, dn: Tensor | None, *_: Any, run: Any = None
) -> tuple[Any, ...]:
    q, k, v, i, f, C0, n0, cu_seqlens, h, *saved = ctx.saved_tensors
    d_final: tuple[Tensor | None, Tensor | None] = (None, None)
    if ctx.want_state and (dC is not None or dn is not None):
        zeros = [i.new_zeros(shape, dtype=torch.float32) for shape in ctx.state_shapes]
        d_final = (zeros[0] if dC is None else dC, zeros[1] if dn is None else dn)
    dh = torch.zeros_like(h) if dh is None else dh.to(h.dtype)
    dq, dk, dv, di, df, dC0, dn0 = (run or torch.ops.isoflop.mlstm_backward)(
        dh, *d_final, q, k, v, i, f, ctx.has_initial, cu_seqlens, h, ctx.want_state, *saved, *ctx.options
    )
    if not ctx.has_initial:
        return dq, dk, dv, di, df, *[None] * 10
    # The physical state is exp(m) [C | n].
    dm0 = (C0 * dC0).sum((-1, -2)) + (n0 * dn0).sum(-1)
    return dq, dk, dv, di, df, dC0, dn0, dm0, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_setup_context)


@torch.library.impl("isoflop::mlstm_forward", "AutocastCUDA")
def _autocast(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Products in the dtype of autocast; gates and states stay in float32."""
    dtype = torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", enabled=False):
        q, k, v, i, f = q.to(dtype), k.to(dtype), v.to(dtype), i.float(), f.float()
        return torch.ops.isoflop.mlstm_forward(q, k, v, i, f, *rest)


def _contiguous_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@contextmanager
def _on_device(x: Tensor) -> Iterator[None]:
    """Triton launches on the current device, which need not be that of x."""
    if x.is_cuda:
        with torch.cuda.device(x.device):
            yield
    else:
        yield


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State | None, cu_seqlens: Tensor | None
) -> None:
    if q.ndim != 4 or 0 in q.shape or 0 in v.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}: must be (B, S, H, K), none of them 0")
    batch, length, heads, width = q.shape
    expect_shape("k", k, q.shape)
    expect_shape("v", v, (batch, length, heads, v.shape[-1]))
    expect_shape("i", i, (batch, length, heads))
    expect_shape("f", f, (batch, length, heads))
    if max(width, v.shape[-1]) > 512:
        raise ValueError(f"heads of {width} and {v.shape[-1]} channels: the Triton kernels take at most 512")
    autocast = torch.is_autocast_enabled(q.device.type)
    if not autocast and (q.dtype not in _DTYPES or not q.dtype == k.dtype == v.dtype):
        dtypes = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise ValueError(f"q, k, v are {dtypes}: must be one of float32, bfloat16, float16")
    rows = batch
    if cu_seqlens is not None:
        rows = cu_seqlens.shape[0] - 1
        if batch != 1:
            raise ValueError(f"cu_seqlens packs documents into one row, but the batch has {batch}")
    if state is not None:
        for name, part, shape in zip("Cnm", state, ((width, v.shape[-1]), (width,), ()), strict=True):
            expect_shape(f"initial_state {name}", part, (rows, heads, *shape))
