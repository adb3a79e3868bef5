"""No configuration is used before it has given the right numbers, whatever goes wrong while it is tried."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.mlstm import sequence_check, sequence_configs, sequence_launch
from kernels.mlstm.sequence_check import Trial, checked_config, problem_error

GPU = torch.device("cuda", 0)
TRIAL = Trial(config="single-64", dtype="float32", width=16, value_width=16)


def like(width: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """What is asked of a tensor on a GPU."""
    return SimpleNamespace(device=GPU, dtype=dtype, shape=(1, 1, 1, width))


@pytest.fixture(autouse=True)
def no_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_check, "interpreted", lambda: False)


def test_the_first_that_is_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def verdict(trial: Trial, device: torch.device) -> float:
        asked.append(trial.config)
        return 0.5 if trial.config == sequence_configs.HALF[0].name else 1e-3

    monkeypatch.setattr(sequence_check, "_verdict", verdict)
    assert checked_config(like(16), like(16)) is sequence_configs.HALF[1]
    assert asked == [config.name for config in sequence_configs.HALF[:2]]


def test_none_that_is_right_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_check, "_verdict", lambda trial, device: float("inf"))
    with pytest.raises(RuntimeError, match=r'tried single-64, single-32; .* backend="reference"'):
        checked_config(like(16, torch.float32), like(16, torch.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
@pytest.mark.parametrize("change", [{}, {"packed": True, "starts": True, "ends": True}])
def test_right_kernels_pass_and_a_wrong_one_is_noticed(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, bool]
) -> None:
    trial = Trial(config="single-32", dtype="float32", width=16, value_width=16, **change)
    size: dict[str, int] = {"batch": 2, "heads": 1, "length": 36, "repeats": 1}
    assert problem_error(trial, torch.device("cpu"), **size) < 1e-5
    launch = sequence_launch.launch_gate_gradients
    monkeypatch.setattr(
        sequence_launch, "launch_gate_gradients", lambda *x: tuple(1.01 * g for g in launch(*x))
    )
    assert problem_error(trial, torch.device("cpu"), **size) > sequence_check.TOLERANCE["float32"]


def test_what_changes_between_runs_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race shows as other bits, whatever their distance from the truth."""
    runs: list[int] = []

    def ours(*_: Any) -> list[torch.Tensor]:
        runs.append(0)
        return [torch.tensor([1.0 + 1e-7 * len(runs)])]

    monkeypatch.setattr(sequence_check, "_ours", ours)
    assert problem_error(TRIAL, torch.device("cpu"), repeats=2) == float("inf")
