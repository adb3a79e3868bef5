"""Who competes with the sLSTM kernels, and on what: each contender as a call that runs once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 16
"""Steps in a graph of the compiled loop: all 2048 would compile for hours."""
Call = Callable[[], list[Tensor]]
"""Runs once; outputs, and the gradients of the inputs where it went backward."""


@dataclass(frozen=True)
class Shape:
    batch: int
    length: int
    heads: int
    width: int


def inputs_of(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """x, R, b and what enters backward, reproducible."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    B, S, H, D = shape.batch, shape.length, shape.heads, shape.width
    b = draw(H, 4, D)
    b[:, 1] += 3
    tensors = {"x": draw(B, S, 4, H, D).to(dtype), "R": (draw(H, D, 4, D) * D**-0.5).to(dtype), "b": b}
    return tensors | {"dh": draw(B, S, H, D).to(dtype)}


def ours(tensors: dict[str, Tensor], backward: bool) -> Call:
    from kernels.slstm import slstm

    backend = "triton" if tensors["x"].is_cuda else "reference"
    return operator(lambda x, R, b: slstm(x, R, b, backend=backend), tensors, backward)


def loop(tensors: dict[str, Tensor], backward: bool) -> Call:
    return operator(_steps, tensors, backward)


def compiled_loop(tensors: dict[str, Tensor], backward: bool) -> Call:
    chunk = torch.compile(_chunk, fullgraph=True)

    def run(x: Tensor, R: Tensor, b: Tensor) -> Tensor:
        state, parts = _empty(x), []
        for piece in x.split(CHUNK, 1):
            h, *state = chunk(piece, R, b, *state)
            parts.append(h)
        return torch.cat(parts, 1)

    return operator(run, tensors, backward)


def cudnn_lstm(tensors: dict[str, Tensor], backward: bool, dtype: torch.dtype = torch.bfloat16) -> Call:
    """Of the same width, and recurrent weights that are dense. Its time holds the projection of its inputs,
    which the others are given: `input_projection`."""
    dh = tensors["dh"].to(dtype)
    width = dh.shape[-1] * dh.shape[-2]
    lstm = nn.LSTM(width, width, batch_first=True, device=dh.device, dtype=dh.dtype).train(backward)
    x = tensors["x"][:, :, 0].flatten(2).to(dtype).contiguous().requires_grad_(backward)
    entering = dh.flatten(2)

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            h, _ = lstm(x)
        if not backward:
            return [h]
        return [h, *torch.autograd.grad(h, [x, *lstm.parameters()], entering)]

    return call


def input_projection(tensors: dict[str, Tensor], backward: bool) -> Call:
    """What cuDNN's LSTM does beside the recurrence and the other contenders do not: a wide linear map."""
    dh = tensors["dh"]
    width = dh.shape[-1] * dh.shape[-2]
    linear = nn.Linear(width, 4 * width, device=dh.device, dtype=dh.dtype)
    x = tensors["x"][:, :, 0].flatten(2).contiguous().requires_grad_(backward)
    entering = tensors["x"].flatten(2)

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            out = linear(x)
        return [out, *torch.autograd.grad(out, [x, *linear.parameters()], entering)] if backward else [out]

    return call


def operator(function: Callable[..., Any], tensors: dict[str, Tensor], backward: bool) -> Call:
    leaves = [tensors[name].clone().requires_grad_(backward) for name in ("x", "R", "b")]

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            h = function(*leaves)
        return [h, *torch.autograd.grad(h, leaves, tensors["dh"])] if backward else [h]

    return call


def _empty(x: Tensor) -> list[Tensor]:
    """y, c, n, m."""
    batch, _, _, heads, width = x.shape
    return [x.new_zeros(batch, heads, width, dtype=torch.float32) for _ in range(4)]


def _steps(x: Tensor, R: Tensor, b: Tensor) -> Tensor:
    return _chunk(x, R, b, *_empty(x))[0]


def _chunk(
    x: Tensor, R: Tensor, b: Tensor, y: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The paper's equations, a step after the other; recurrent products in the dtype of R."""
    h = []
    bias = b.transpose(0, 1)
    for t in range(x.shape[1]):
        recurrent = torch.einsum("bhd,hdge->bghe", y.to(R.dtype), R)
        i, f, z, o = (x[:, t] + recurrent + bias).unbind(1)
        log_f = nn.functional.logsigmoid(f) + m
        m_new = torch.where(n == 0, i, torch.maximum(i, log_f))
        write, keep = (i - m_new).exp(), (log_f - m_new).clamp_max(0).exp() * (n != 0)
        c, n, m = keep * c + write * z.tanh(), keep * n + write, m_new
        y = o.sigmoid() * c / n
        h.append(y)
    return torch.stack(h, 1).to(x.dtype), y, c, n, m


CONTENDERS: dict[str, Callable[[dict[str, Tensor], bool], Call]] = {
    "ours": ours,
    "loop": loop,
    "compiled loop": compiled_loop,
    "cuDNN LSTM": cudnn_lstm,
    "cuDNN LSTM, float16": partial(cudnn_lstm, dtype=torch.float16),
    "input projection": input_projection,
}
