"""What is measured: shapes, and who competes, each in its own layout with the inputs it wants."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.mlstm.reference import activate_gates, mlstm_reference


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    batch: int
    length: int
    heads: int
    width: int
    """Of a query and key head (K)."""
    value_width: int
    """Of a value head (V)."""

    @property
    def token_heads(self) -> int:
        return self.batch * self.length * self.heads


def _shape(name: str, batch: int, length: int, heads: int, width: int, value_width: int) -> Shape:
    return Shape(name=name, batch=batch, length=length, heads=heads, width=width, value_width=value_width)


SHAPES = [
    _shape("16h-128/256-S2048", 32, 2048, 16, 128, 256),
    _shape("16h-128/256-S8192", 8, 8192, 16, 128, 256),
    _shape("16h-128/256-S65536", 1, 65536, 16, 128, 256),
    _shape("8h-256/512-S8192", 8, 8192, 8, 256, 512),
    _shape("4h-64/128-S8192", 8, 8192, 4, 64, 128),
]
"""65,536 tokens each."""

QUICK_SHAPES = [_shape("2h-16/32-S128", 2, 128, 2, 16, 32), _shape("1h-16/16-S100", 1, 100, 1, 16, 16)]

ACCURACY = _shape("S1024", 1, 1024, 4, 128, 256)
ACCURACY_LONG = _shape("S16384", 1, 16384, 2, 128, 256)
QUICK_ACCURACY = _shape("S64", 1, 64, 2, 16, 32)
QUICK_ACCURACY_LONG = _shape("S256", 1, 256, 1, 16, 32)

Op = Callable[..., Any]
Cell = Literal["mlstm", "mlstm, normaliser detached", "mlstm-sig, normaliser detached", "other"]
INPUTS = ("dq", "dk", "dv", "di", "df")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call of a contender, and how to read it."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    dh: Tensor
    """The gradient that enters, in the shape of h."""
    to_tokens_first: Callable[[Tensor], Tensor]
    """From the contender's layout to (B, S, H, ...)."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    name: str
    label: str
    cell: Cell
    build: Callable[[Shape, torch.device, torch.dtype], Problem]
    dtype: torch.dtype = torch.bfloat16
    peer: bool = True
    gpu_only: bool = True
    timed: bool = True
    shapes: tuple[str, ...] = ("",)
    """Only shapes whose name starts with one of these."""
    recorded: bool = False
    """Each pass in a CUDA graph, as a training of a small model runs: what the host takes is left out."""

    def takes(self, shape: Shape) -> bool:
        return shape.name.startswith(self.shapes)


def random_inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v in `dtype`, raw gates in float32, and dh: the same for everyone, tokens first."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*last: int) -> Tensor:
        size = (shape.batch, shape.length, shape.heads, *last)
        return torch.randn(size, device=device, generator=generator)

    q, k, v, dh = (
        normal(width).to(dtype) for width in (shape.width, shape.width, shape.value_width, shape.value_width)
    )
    return [q, k, v, normal(), normal() + 3.0, dh]


def truth(shape: Shape, device: torch.device, dtype: torch.dtype, cell: Cell) -> dict[str, Tensor]:
    """h and all gradients in float64, of the function that the contender means to compute."""
    *inputs, dh = (x.double() for x in random_inputs(shape, device, dtype))
    leaves = [x.requires_grad_() for x in inputs]
    h = mlstm_reference(
        *leaves,
        exact_norm=cell == "mlstm",
        input_gate="sigmoid" if cell.startswith("mlstm-sig") else "exp",
    )
    assert isinstance(h, Tensor)
    grads = torch.autograd.grad(h, leaves, dh)
    return {"h": h.detach(), **dict(zip(INPUTS, grads, strict=True))}


def _tokens_first(op: Op, shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    *inputs, dh = random_inputs(shape, device, dtype)
    leaves = [x.requires_grad_() for x in inputs]
    return Problem(forward=lambda: op(*leaves), leaves=leaves, dh=dh, to_tokens_first=lambda x: x)


def _heads_first(op: Op, shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    """The copies into this layout, which a model pays, are not counted."""
    *inputs, dh = (x.transpose(1, 2).contiguous() for x in random_inputs(shape, device, dtype))
    leaves = [x.requires_grad_() for x in inputs]
    return Problem(
        forward=lambda: op(*leaves), leaves=leaves, dh=dh, to_tokens_first=lambda x: x.transpose(1, 2)
    )


def _ours(shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    from kernels.mlstm import mlstm

    return _tokens_first(mlstm, shape, device, dtype)


def _ours_normaliser_detached(shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    from kernels.mlstm import mlstm

    return _tokens_first(partial(mlstm, exact_norm=False), shape, device, dtype)


def _reference(shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    return _tokens_first(mlstm_reference, shape, device, dtype)


def _xl_chunk(shape: Shape, device: torch.device, dtype: torch.dtype, **options: Any) -> Problem:
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk

    op = partial(mlstm_chunkwise__xl_chunk, chunk_size=128, eps=1e-6, **options)
    return _heads_first(op, shape, device, dtype)


def _xl_chunk_sig(shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging import mlstm_siging_chunkwise__xl_chunk

    op = partial(mlstm_siging_chunkwise__xl_chunk, chunk_size=128, eps=1e-6, normalize=True)
    return _heads_first(op, shape, device, dtype)


def _limit_chunk(shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    from mlstm_kernels.torch.chunkwise.triton_limit_chunk import mlstm_chunkwise__limit_chunk

    return _heads_first(partial(mlstm_chunkwise__limit_chunk, chunk_size=64, eps=1e-6), shape, device, dtype)


def _simple_gla(shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    """The nearest function there: no input gate and no normaliser. The log is not timed."""
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v, _, f, dh = random_inputs(shape, device, dtype)
    _, log_f = activate_gates(f, f, None, "exp")
    leaves = [x.requires_grad_() for x in (q, k, v, log_f)]
    return Problem(
        forward=lambda: chunk_simple_gla(*leaves)[0], leaves=leaves, dh=dh, to_tokens_first=lambda x: x
    )


def _attention(kernel: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
    """Causal attention of a model of the same width: heads of 128."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    size = (shape.batch, shape.heads * shape.value_width // 128, shape.length, 128)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, dh = (torch.randn(size, device=device, generator=generator).to(dtype) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Problem(forward=forward, leaves=leaves, dh=dh, to_tokens_first=lambda x: x)


_DETACHED: Cell = "mlstm, normaliser detached"
_STAGES: dict[str, Any] = {"num_stages_intra": 2, "num_stages_inter": 2}

_LIST = [
    Contender(name="ours", label="**ours**", cell="mlstm", build=_ours, peer=False, gpu_only=False),
    Contender(
        name="ours-detached", label="ours, exact_norm=False", cell=_DETACHED, build=_ours_normaliser_detached,
        peer=False, gpu_only=False,
    ),
    Contender(
        name="ours-recorded", label="ours, in a CUDA graph", cell="mlstm", build=_ours, peer=False,
        shapes=("4h",), recorded=True,
    ),
    Contender(
        name="ours-fp32", label="ours, float32", cell="mlstm", build=_ours, dtype=torch.float32, peer=False,
        gpu_only=False, timed=False,
    ),
    Contender(
        name="xl-chunk", label="mlstm_kernels xl_chunk L=128", cell=_DETACHED, build=_xl_chunk,
    ),
    Contender(
        name="xl-chunk-2", label="mlstm_kernels xl_chunk L=128, num_stages=2", cell=_DETACHED,
        build=partial(_xl_chunk, **_STAGES),
    ),
    Contender(
        name="xl-chunk-recorded", label="mlstm_kernels xl_chunk L=128, in a CUDA graph", cell=_DETACHED,
        build=_xl_chunk, shapes=("4h",), recorded=True,
    ),
    Contender(
        name="limit-chunk", label="mlstm_kernels limit_chunk L=64", cell=_DETACHED, build=_limit_chunk,
    ),
    Contender(
        name="xl-chunk-sig", label="mlstm_kernels mLSTMsig xl_chunk L=128",
        cell="mlstm-sig, normaliser detached", build=_xl_chunk_sig,
    ),
    Contender(name="simple-gla", label="fla simple_gla (other function)", cell="other", build=_simple_gla),
    Contender(
        name="cudnn", label="cuDNN causal attention, heads of 128", cell="other",
        build=partial(_attention, "CUDNN_ATTENTION"), shapes=("16h", "2h"),
    ),
    Contender(
        name="flash", label="FlashAttention in torch, heads of 128", cell="other",
        build=partial(_attention, "FLASH_ATTENTION"), shapes=("16h", "2h"),
    ),
    Contender(
        name="reference", label="PyTorch reference", cell="mlstm", build=_reference, peer=False,
        gpu_only=False,
    ),
]  # fmt: skip

CONTENDERS = {contender.name: contender for contender in _LIST}


def forward_flops(shape: Shape, chunk: int = 64) -> float:
    """Of the chunkwise form, counted for the same chunk length whatever a contender takes."""
    K, V = shape.width, shape.value_width
    return shape.token_heads * (4.0 * K * V + (chunk + 64) * (K + V))


def backward_flops(shape: Shape, chunk: int = 64) -> float:
    K, V = shape.width, shape.value_width
    return shape.token_heads * (8.0 * K * V + (chunk + 64) / 2 * (6 * K + 4 * V))


def forward_bytes(shape: Shape) -> float:
    """Compulsory in bfloat16: q, k, v and both float32 gates read, h written."""
    return shape.token_heads * (4.0 * (shape.width + shape.value_width) + 8)


def backward_bytes(shape: Shape) -> float:
    """Compulsory in bfloat16: q, k, v, dh and the gates read, dq, dk, dv and those of the gates written."""
    return shape.token_heads * (8.0 * shape.width + 6.0 * shape.value_width + 16)
