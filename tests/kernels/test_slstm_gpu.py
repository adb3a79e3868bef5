"""The sLSTM operator compiled for the GPU at hand: every kind of cell, dtype and layout, states, sizes.

Tolerances are those of KERNELS.md: 1e-5 of float64 in float32 and 1e-2 in half precision, relative in the
2-norm. Before every run the memory that it will be given is filled with what is not a number.
"""

from typing import Any

import pytest
import torch

from kernels import trials
from kernels.slstm import slstm
from kernels.slstm.check import Trial, problem_error
from kernels.slstm.configs import CHIP, STREAM, WIDE
from tests.kernels.test_slstm import assert_close, problem, run
from xlstm.accounting import build_config
from xlstm.models import build_model, next_token_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = torch.device("cuda", 0)
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {FLOAT32: 1e-5, BFLOAT16: 1e-2, FLOAT16: 1e-2}


def check(
    size: tuple[int, int, int, int],
    dtype: torch.dtype,
    *,
    forget: float = 2.0,
    write: float = 0.0,
    **options: Any,
) -> None:
    p = problem(*size, forget=forget, write=write, dtype=dtype)
    on_gpu = {name: part.to(GPU) for name, part in p.items()}
    blocks = [torch.full((2**20,), torch.nan, device=GPU) for _ in range(64)]
    del blocks
    ours = run(on_gpu, dtype=dtype, backend="triton", **options)
    truth = run(p, backend="reference", **options)
    assert_close({name: part.cpu() for name, part in ours.items()}, truth, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("forget", [-6.0, 0.0, 6.0])
def test_every_dtype_with_open_and_shut_gates(dtype: torch.dtype, forget: float) -> None:
    check((5, 130, 3, 64), dtype, forget=forget)


@pytest.mark.parametrize(("gate", "normaliser"), [("sigmoid", True), ("exp", False), ("sigmoid", False)])
@pytest.mark.parametrize("mixes", [True, False])
def test_every_kind_of_cell(gate: str, normaliser: bool, mixes: bool) -> None:
    # Open exponential gates that nothing normalises magnify the rounding of y: see `problem_error`.
    write = -3.0 if gate == "exp" and not normaliser else 0.0
    check((17, 40, 2, 64), BFLOAT16, write=write, input_gate=gate, normaliser=normaliser, mixes=mixes)


@pytest.mark.parametrize("width", [4, 48, 128, 200])
def test_every_width(width: int) -> None:
    check((3, 40, 2, width), BFLOAT16)


def test_a_long_sequence() -> None:
    check((2, 4096, 2, 64), BFLOAT16, forget=5.0, starts=False)


@pytest.mark.parametrize("config", [*CHIP, *STREAM, WIDE], ids=lambda config: config.name)
def test_every_layout(config: Any) -> None:
    trial = Trial(config=config.name, dtype="bfloat16", width=64)
    assert problem_error(trial, GPU, config=config) <= TOLERANCE[BFLOAT16]


def test_the_trial_finds_the_first_layout_right() -> None:
    assert (
        trials.verdict(Trial(config="chip-8", dtype="bfloat16", width=64), GPU, "kernels.slstm.check", 0.02)
        < 0.02
    )


def test_many_programs_give_equal_bits() -> None:
    p = {name: part.to(GPU) for name, part in problem(64, 256, 8, 64, dtype=BFLOAT16).items()}
    first = run(p, dtype=BFLOAT16, backend="triton")
    again = run(p, dtype=BFLOAT16, backend="triton")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_model_trains_as_on_the_cpu() -> None:
    config = build_config("xlstm[1:1]", vocab_size=50, d_model=128, num_blocks=2, num_heads=2)
    losses = []
    tokens = torch.randint(50, (4, 65), generator=torch.Generator().manual_seed(0))
    for device in ("cpu", GPU):
        torch.manual_seed(0)
        model = build_model(config).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        windows = tokens.to(device)
        for _ in range(5):
            loss = next_token_loss(model(windows[:, :-1]), windows[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_under_autocast_the_products_are_narrow() -> None:
    p = {name: part.to(GPU).float() for name, part in problem(2, 9, 2, 64).items()}
    with torch.autocast("cuda", BFLOAT16):
        h = slstm(p["x"].requires_grad_(), p["R"], p["b"])
    assert h.dtype == BFLOAT16
    h.float().sum().backward()
    assert p["x"].grad.dtype == FLOAT32
