"""The decode step: microseconds a step, in CUDA graphs over more state than the L2 cache holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.mlstm_measure import time_calls
from kernels.mlstm.decode import mlstm_step
from kernels.mlstm.reference import State, recurrent_step

HEADS, WIDTH, VALUE_WIDTH = 8, 256, 512
BATCHES = (1, 8, 64)
ROTATE_BYTES = 240e6
"""Of state a graph walks over, four times the L2 cache of an H200; two states at least."""
STEPS = 48
"""In a graph, at least."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Step = Callable[[Inputs, int], object]
"""Takes the number of the state to move on."""


@dataclass(frozen=True, kw_only=True)
class DecodeContender:
    name: str
    label: str
    prepare: Callable[[list[State]], Step]
    state_dtype: torch.dtype
    scale_dtype: torch.dtype = torch.float32
    """Of n and m."""
    gpu_only: bool = False


def _ours(states: list[State]) -> Step:
    counts = _counts(states)
    return lambda inputs, number: mlstm_step(*inputs, states[number], arrivals=counts)


def _ours_surrounded(states: list[State]) -> Step:
    surroundings, counts = _surroundings(states), _counts(states)
    return lambda inputs, number: mlstm_step(*inputs, states[number], arrivals=counts, **surroundings)


def _ours_chained(states: list[State]) -> Step:
    """As generation calls it: dependent launches, one on every state, behind a kernel that is none."""
    surroundings, counts = _surroundings(states), _counts(states)

    def step(inputs: Inputs, number: int) -> None:
        if number == 0:
            inputs[0].mul_(1.0)
        mlstm_step(*inputs, states[number], arrivals=counts, chained=True, **surroundings)

    return step


def _counts(states: list[State]) -> Tensor:
    """Kept, as whoever decodes keeps them: no step fills its own."""
    m = states[0][2]
    return torch.zeros(m.numel(), dtype=torch.int32, device=m.device)


def _surroundings(states: list[State]) -> dict[str, Any]:
    batch, device = states[0][0].shape[0], states[0][0].device
    weight = torch.ones(HEADS * VALUE_WIDTH, device=device)
    o = torch.randn(batch, HEADS, VALUE_WIDTH, device=device).bfloat16()
    return {"gate_soft_cap": 15.0, "norm_weight": weight, "ogate": o}


def _reference(states: list[State]) -> Step:
    return lambda inputs, number: mlstm_step(*inputs, states[number], backend="reference")


def _copy(states: list[State]) -> Step:
    """As many bytes as a step reads and writes, and nothing else: the ceiling at this size."""
    return lambda inputs, number: _other(states, number)[0].copy_(states[number][0])


def _peer(states: list[State]) -> Step:
    """It writes a second state instead of updating the first."""
    from mlstm_kernels.torch.recurrent.triton_step import mlstm_recurrent_step__triton_fw

    def step(inputs: Inputs, number: int) -> None:
        q, k, v, i, f = inputs
        (C, n, m), (C_new, n_new, m_new) = states[number], _other(states, number)
        mlstm_recurrent_step__triton_fw(
            C, n, m[..., None], q, k, v, i[..., None], f[..., None],
            matC_new=C_new, vecN_new=n_new, scaM_new=m_new[..., None], dtype_state=C.dtype,
        )  # fmt: skip

    return step


def _other(states: list[State], number: int) -> State:
    """The one half a rotation away: neither of both is in the cache."""
    return states[(number + len(states) // 2) % len(states)]


def _contenders() -> Iterator[DecodeContender]:
    fp32, bf16 = torch.float32, torch.bfloat16
    for dtype, suffix in ((fp32, ""), (bf16, "-bf16")):
        yield DecodeContender(name="step" + suffix, label="**ours**", prepare=_ours, state_dtype=dtype)
        yield DecodeContender(
            name="step-norm" + suffix, label="ours with soft cap, norm, output gate",
            prepare=_ours_surrounded, state_dtype=dtype,
        )  # fmt: skip
        yield DecodeContender(
            name="step-chain" + suffix, label="the same in a chain of dependent launches",
            prepare=_ours_chained, state_dtype=dtype,
        )  # fmt: skip
        yield DecodeContender(
            name="step-peer" + suffix, label="mlstm_kernels triton step", prepare=_peer,
            state_dtype=dtype, scale_dtype=dtype, gpu_only=True,
        )  # fmt: skip
        yield DecodeContender(
            name="step-copy" + suffix, label="copy of the same bytes", prepare=_copy, state_dtype=dtype,
            gpu_only=True,
        )  # fmt: skip
    yield DecodeContender(
        name="step-reference", label="PyTorch reference", prepare=_reference, state_dtype=fp32
    )


DECODE = {contender.name: contender for contender in _contenders()}


def step_bytes(batch: int, state_dtype: torch.dtype) -> int:
    """C, n and m read and written, q, k, v and the gates read, h written."""
    heads = batch * HEADS
    state = 2 * (WIDTH * VALUE_WIDTH * state_dtype.itemsize + WIDTH * 4 + 4)
    return heads * (state + 2 * (2 * WIDTH + 2 * VALUE_WIDTH) + 8)


def measure_decode(
    contender: DecodeContender, batch: int, device: torch.device, budget_s: float
) -> dict[str, Any]:
    inputs, states = _inputs(contender, batch, device)
    step = contender.prepare(states)
    if device.type != "cuda":
        return {"us": time_calls(lambda mark: step(inputs, 0), device, budget_s)[0] * 1e3}
    steps = max(1, STEPS // len(states)) * len(states)
    replay = _capture(step, inputs, len(states), steps)
    return {"us": time_calls(lambda mark: replay(), device, budget_s)[0] * 1e3 / steps}


def _capture(step: Step, inputs: Inputs, count: int, steps: int) -> Callable[[], None]:
    for number in range(2):
        step(inputs, number)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(steps):
            step(inputs, number % count)
    return graph.replay


def _inputs(contender: DecodeContender, batch: int, device: torch.device) -> tuple[Inputs, list[State]]:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, HEADS, *size, device=device, generator=generator)

    q, k, v = (normal(width).bfloat16() for width in (WIDTH, WIDTH, VALUE_WIDTH))
    size = batch * HEADS * WIDTH * VALUE_WIDTH * contender.state_dtype.itemsize
    count = max(2, int(ROTATE_BYTES // size)) if device.type == "cuda" else 1
    C_dtype, scales = contender.state_dtype, contender.scale_dtype
    states = [
        (normal(WIDTH, VALUE_WIDTH).to(C_dtype), normal(WIDTH).to(scales), normal().to(scales))
        for _ in range(count)
    ]
    return (q, k, v, normal(), normal() + 3.0), states


def decode_error(contender: DecodeContender, device: torch.device, batch: int = 2) -> dict[str, Any]:
    """Of h and C after one step, against float64. Only for what updates its state in place."""
    inputs, states = _inputs(contender, batch, device)
    q, k, v, i, f = (x.double() for x in inputs)
    C, n, m = (x.double() for x in states[0])
    exact_h, (exact_C, *_) = recurrent_step(q, k, v, i, f, (C, n, m))
    h = mlstm_step(*inputs, states[0])
    pairs = {"h": (h, exact_h), "C": (states[0][0], exact_C)}
    return {"errors": {name: ((x.double() - y).norm() / y.norm()).item() for name, (x, y) in pairs.items()}}
