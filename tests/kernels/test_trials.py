"""Nothing is used before it has given the right numbers, whatever goes wrong while it is tried."""

import json
import logging
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import trials

GPU = torch.device("cuda", 0)
MODULE = "kernels.slstm.check"


@dataclass(frozen=True)
class Anything:
    config: str = "some"
    dtype: str = "float32"
    width: int = 16


@pytest.fixture(autouse=True)
def no_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_verdicts", {})


@pytest.mark.parametrize(
    ("code", "out", "err", "error", "kept"),
    [
        (0, 'noise\n{"error": 0.001}\n', "", 0.001, True),
        (0, '{"error": 0.3}\n', "", 0.3, True),
        (-6, "", "LLVM ERROR", float("inf"), True),
        (1, "", "torch.OutOfMemoryError: CUDA out of memory.", float("inf"), False),
    ],
)
def test_answers_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, out: str, err: str, error: float, kept: bool
) -> None:
    path = tmp_path / "cache" / "verdict.json"
    answer = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(subprocess, "run", lambda *x, **options: answer)
    assert trials.attempt(Anything(), GPU, MODULE, 0.01, path) == error
    assert path.exists() == kept
    if kept:
        assert json.loads(path.read_text())["error"] == error


def test_a_hang_is_a_verdict_that_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*x: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    path = tmp_path / "verdict.json"
    assert trials.attempt(Anything(), GPU, MODULE, 0.01, path) == float("inf")
    assert not path.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
def test_a_process_that_fails_is_a_verdict_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real process; here it fails for want of a GPU."""
    path = tmp_path / "verdict.json"
    monkeypatch.setattr(trials, "verdict_path", lambda *x: path)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    logger = logging.getLogger("kernels.trials")
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING, logger="kernels.trials"):
        assert trials.verdict(Anything(), GPU, MODULE, 0.01) == float("inf")
    assert "ends with code 1, not used" in caplog.text
    monkeypatch.setattr(trials, "attempt", lambda *x: pytest.fail("tried again"))
    trials._verdicts.clear()
    assert trials.verdict(Anything(), GPU, MODULE, 0.01) == float("inf")


def test_nothing_is_tried_while_a_graph_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "verdict_path", lambda *x: tmp_path / "none.json")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run the model once before capturing"):
        trials.verdict(Anything(), GPU, MODULE, 0.01)


def test_a_verdict_that_cannot_be_kept_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    answer = subprocess.CompletedProcess([], 0, '{"error": 0.001}', "")
    monkeypatch.setattr(subprocess, "run", lambda *x, **options: answer)
    path = tmp_path / "file" / "verdict.json"
    assert trials.attempt(Anything(), GPU, MODULE, 0.01, path) == 0.001


def test_what_changes_between_runs_is_not_right() -> None:
    """A race shows as other bits, whatever their distance from the truth."""
    runs: list[int] = []

    def ours() -> list[torch.Tensor]:
        runs.append(0)
        return [torch.tensor([1.0 + 1e-6 * len(runs)])]

    truth = [torch.tensor([1.0]).double()]
    assert trials.largest_error(ours, truth, torch.device("cpu"), repeats=2) == float("inf")
    assert trials.largest_error(
        lambda: [torch.tensor([1.1])], truth, torch.device("cpu"), 2
    ) == pytest.approx(0.1)
    nan = [torch.tensor([float("nan")])]
    assert trials.largest_error(lambda: nan, truth, torch.device("cpu"), 1) == float("inf")
