"""The sLSTM kernels in Triton's interpreter, against the reference in float64, in every way they compile."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kernels import trials
from kernels.slstm import State, check, launch, slstm
from kernels.slstm.check import Trial, checked_config, problem_error
from kernels.slstm.configs import CHIP, STREAM, WIDE, SLSTMKernelConfig, candidates
from tests.kernels.test_slstm import assert_close, problem, run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs test_slstm_gpu instead")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CHIP_TINY = SLSTMKernelConfig(name="chip", chip=True, warps=4)
STREAM_TINY = SLSTMKernelConfig(name="stream", chip=False, warps=4, slice=16)
SMALL: dict[str, int] = {"batch": 2, "heads": 1, "length": 3, "repeats": 1}


@pytest.mark.parametrize("config", [CHIP_TINY, STREAM_TINY], ids=lambda config: config.name)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("normaliser", [False, True])
def test_every_kind_of_cell(config: SLSTMKernelConfig, sigmoid: bool, normaliser: bool) -> None:
    for starts, mixes in ((False, True), (True, True), (True, False)):
        trial = Trial(
            config=config.name, dtype="float32", width=20, mixes=mixes, starts=starts, sigmoid=sigmoid,
            normaliser=normaliser,
        )  # fmt: skip
        assert problem_error(trial, CPU, config=config, **SMALL) < 1e-5


def test_forward_alone() -> None:
    """The kernel that saves nothing is another one, tried by itself."""
    trial = Trial(config="chip", dtype="float32", width=20, starts=True, trains=False)
    assert problem_error(trial, CPU, config=CHIP_TINY, **SMALL) < 1e-5


@settings(
    max_examples=4, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(batch=st.integers(1, 18), heads=st.integers(1, 2), width=st.integers(1, 33), length=st.integers(1, 4))
def test_any_size(batch: int, heads: int, width: int, length: int) -> None:
    """Sequences beyond one program, channels beyond a power of two."""
    trial = Trial(config="chip", dtype="float32", width=width, starts=True)
    size = {"batch": batch, "heads": heads, "length": length, "repeats": 1}
    assert problem_error(trial, CPU, config=CHIP_TINY, **size) < 1e-5


@pytest.mark.parametrize("starts", [False, True])
def test_the_operator_through_autograd(starts: bool) -> None:
    p = problem(2, 4, 2, 5)
    ours = run(p, dtype=torch.float32, backend="triton", starts=starts)
    assert_close(ours, run(p, starts=starts), 1e-5)


def test_what_goes_forward_alone_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(1, 3, 1, 4)
    x, R, b = (p[name].float() for name in ("x", "R", "b"))
    seen: list[bool] = []
    forward = launch.forward

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[6])
        return forward(*arguments)

    monkeypatch.setattr(launch, "forward", spy)
    alone = slstm(x, R, b, backend="triton")
    with torch.no_grad():
        slstm(x.requires_grad_(), R, b, backend="triton")
    saving = slstm(x, R, b, backend="triton")
    assert seen == [False, False, True]
    assert torch.equal(alone, saving)


def test_strides_of_a_gate_first_projection() -> None:
    """x as a permuted view: nothing is copied that need not be."""
    p = problem(2, 3, 2, 4)
    x = p["x"].float().permute(1, 2, 3, 0, 4).contiguous().permute(3, 0, 1, 2, 4)
    assert not x.is_contiguous()
    ours = slstm(x, p["R"].float(), p["b"].float(), backend="triton")
    truth = slstm(p["x"], p["R"], p["b"])
    assert (ours - truth).norm() < 1e-5 * truth.norm()


def test_the_operators_are_well_registered() -> None:
    p = {name: part.float() for name, part in problem(1, 2, 1, 3).items()}
    x, R, b = (p[name].requires_grad_() for name in ("x", "R", "b"))
    first = [p[name].requires_grad_() for name in ("y0", "c0", "m0")]
    torch.library.opcheck(torch.ops.isoflop.slstm_forward.default, (x, R, b, *first, False, True, True))
    torch.library.opcheck(
        torch.ops.isoflop.slstm_forward.default, (x, None, b, None, None, None, True, True, True)
    )


def test_bfloat16_heads_that_are_too_wide_and_dtypes_that_are_not_taken() -> None:
    with pytest.raises(ValueError, match="heads of 520 channels: the Triton kernels take at most 512"):
        slstm(torch.zeros(1, 1, 4, 1, 520), None, backend="triton")
    with pytest.raises(ValueError, match="the Triton kernels take float32"):
        slstm(torch.zeros(1, 1, 4, 1, 8, dtype=torch.complex64), None, backend="triton")


def test_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    p = {name: part.float() for name, part in problem(1, 3, 1, 4).items()}
    state = State(*(p[name] for name in ("y0", "c0", "n0", "m0")))

    def function(x: torch.Tensor) -> Any:
        return slstm(x, p["R"], p["b"], initial_state=state, return_final_state=True, backend="triton")

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = p["x"].requires_grad_()
    (h, final), (h2, final2) = compiled(x), function(x)
    torch.testing.assert_close((h, *final), (h2, *final2))
    grads = torch.autograd.grad(h.sum(), x), torch.autograd.grad(h2.sum(), x)
    torch.testing.assert_close(*grads)


# The choice of a layout


def like(width: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """What is asked of a tensor on a GPU."""
    return SimpleNamespace(device=GPU, dtype=dtype, shape=(1, 1, 4, 1, width))


KIND: dict[str, bool] = {
    "mixes": True, "starts": False, "sigmoid": False, "normaliser": True, "trains": True
}  # fmt: skip


def test_weights_stay_on_the_chip_where_they_fit() -> None:
    assert candidates(torch.bfloat16, 128)[: len(CHIP)] == CHIP
    assert candidates(torch.bfloat16, 129) == (WIDE, *STREAM)
    assert candidates(torch.float32, 64) == STREAM


def test_the_first_that_is_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "interpreted", lambda: False)
    monkeypatch.setattr(trials, "verdict", lambda trial, *rest: 0.5 if trial.config == CHIP[0].name else 1e-3)
    assert checked_config(like(64), **KIND) is CHIP[1]
    monkeypatch.setattr(trials, "verdict", lambda *rest: float("inf"))
    with pytest.raises(RuntimeError, match=r'tried chip-8, chip-16, .* backend="reference" needs none'):
        checked_config(like(64), **KIND)


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(config="chip", dtype="float32", width=16)
    backward = launch.backward
    monkeypatch.setattr(
        launch, "backward", lambda *x: tuple(1.01 * part if part.numel() else part for part in backward(*x))
    )
    assert problem_error(trial, CPU, config=CHIP_TINY, **SMALL) > check.TOLERANCE["float32"]
