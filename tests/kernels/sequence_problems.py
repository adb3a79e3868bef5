"""Random problems for the sequence operator, and what they are measured with: shared by its tests."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.mlstm import mlstm
from kernels.mlstm.reference import State
from kernels.mlstm.sequence_configs import ChunkBlocks, SequenceConfig, WalkBlocks

ORACLE = Path(__file__).parents[2].parent / "shared" / "oracle" / "xlstm_fp64.py"
_CHUNKS = ChunkBlocks(rows=16, columns=16, reduce=16, stages=1)
_WALK = WalkBlocks(tile=(16, 16), tokens=16, stages=1)
TINY = SequenceConfig(
    name="tiny", chunk=32, precision="ieee", states=_WALK, state_gradients=_WALK, outputs=_CHUNKS,
    gradients=_CHUNKS,
)  # fmt: skip
"""Few tokens make several chunks, blocks of a chunk, slices of a head and segments: the fixture `tiny`."""
EXACT = 1e-5
"""For float32, as KERNELS.md asks."""
NAMES = ("h", "C", "n", "dq", "dk", "dv", "di", "df", "dC0", "dn0")


def load_oracle() -> ModuleType:
    if not ORACLE.exists():
        pytest.skip("the float64 oracle is not beside this checkout")
    spec = importlib.util.spec_from_file_location("xlstm_fp64", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Problem:
    """Inputs in float64 that float32 holds (`half`: that the 16-bit type holds), and gradients that enter."""

    inputs: list[Tensor]
    """q, k, v, i, f"""
    state: State
    entering: list[Tensor]
    """dh, dC, dn; the last two of the physical final state"""


def random_problem(
    batch: int,
    length: int,
    heads: int,
    width: int,
    value_width: int,
    *,
    i: float = 0.0,
    f: float = 3.0,
    rows: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Problem:
    """rows: sequences, if not the batch. Gates and states are rounded to float32, the rest to `dtype`."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, to: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(to).double()

    tokens, rows = (batch, length, heads), rows or batch
    q, k = (normal(*tokens, width, to=dtype) for _ in range(2))
    v, dh = (normal(*tokens, value_width, to=dtype) for _ in range(2))
    state = normal(rows, heads, width, value_width), normal(rows, heads, width), normal(rows, heads)
    dC, dn = normal(rows, heads, width, value_width), normal(rows, heads, width)
    return Problem([q, k, v, normal(*tokens) + i, normal(*tokens) + f], state, [dh, dC, dn])


def run(
    problem: Problem,
    backend: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    starts: bool = True,
    ends: bool = True,
    single: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """Values, states and gradients by name. The reference runs in float64, and is the truth then, unless
    `single`."""
    truth = backend == "reference" and not single
    wide = torch.float64 if truth else torch.float32
    narrow = torch.float64 if truth else dtype
    leaves = [x.to(device, narrow).requires_grad_() for x in problem.inputs[:3]]
    leaves += [x.to(device, wide).requires_grad_() for x in problem.inputs[3:]]
    C0, n0, m0 = (x.to(device, wide) for x in problem.state)
    state = (C0.requires_grad_(), n0.requires_grad_(), m0) if starts else None
    h, (C, n, m) = mlstm(*leaves, initial_state=state, return_final_state=True, backend=backend, **options)
    dh, dC, dn = (x.to(device, wide) for x in problem.entering)
    outputs, entering = [h], [dh.to(h.dtype)]
    unit = m.exp()
    if ends:
        outputs += [C * unit[..., None, None], n * unit[..., None]]
        entering += [dC, dn]
    grads = torch.autograd.grad(
        outputs, leaves + ([C0, n0] if starts else []), entering, materialize_grads=True
    )
    physical = [h, C * unit[..., None, None], n * unit[..., None]]
    return dict(zip(NAMES, [x.detach() for x in (*physical, *grads)], strict=False))


def assert_close(
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    tolerance: float | dict[str, float],
    floor: float = 0.0,
) -> None:
    """Relative, in the 2-norm, to the truth, or to `floor` where the truth is smaller: terms of order 1 may
    cancel."""
    assert actual.keys() == expected.keys()
    wrong = []
    for name, truth in expected.items():
        error = (actual[name].double() - truth.to(actual[name].device)).norm()
        limit = tolerance if isinstance(tolerance, float) else tolerance.get(name) or tolerance["else"]
        worst = limit * truth.norm().clamp_min(floor) + 1e-30
        if not error <= worst:
            wrong.append(f"{name}: relative error {error / truth.norm():.1e}, at most {limit:.0e}")
    assert not wrong, "; ".join(wrong)
