"""Verdicts of kernel trials as the doctor reads them: those of this machine, compiler and code alone."""

import math
from pathlib import Path

import pytest
import torch

from tasks.kernel_verdicts import kept_verdicts, summary

triton = pytest.importorskip("triton", reason="verdicts lie beside Triton's cache")

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and a GPU by name alone."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    return tmp_path


def test_what_was_tried_here_is_told_and_nothing_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import trials
    from kernels.mlstm import sequence_check as mlstm
    from kernels.mlstm.sequence_configs import candidates
    from kernels.slstm import check as slstm
    from kernels.slstm import configs

    first, *_ = candidates(torch.bfloat16)
    assert summary(list(kept_verdicts(DEVICE))) == []
    for width, error in ((32, 3e-3), (64, 4e-3), (128, math.inf)):
        trial = mlstm.Trial(config=first.name, dtype="bfloat16", width=width, value_width=width)
        trials._keep(trials.verdict_path(trial, DEVICE, mlstm.__name__), trial, error)
    layout, *_ = configs.candidates(torch.float32, 64)
    wrong = slstm.Trial(config=layout.name, dtype="float32", width=64)
    trials._keep(trials.verdict_path(wrong, DEVICE, slstm.__name__), wrong, 0.5)
    expected = [
        f"mLSTM {first.name} bfloat16: proven for 2 kinds of problem, error at most 4.0e-03;"
        " refused for 1 kind of problem, does not run, or not twice the same: the next configuration is used",
        f"sLSTM {layout.name} float32: refused for 1 kind of problem, wrong by up to 5.0e-01:"
        " the next configuration is used",
    ]
    assert summary(list(kept_verdicts(DEVICE))) == expected

    (cache / "isoflop-mlstm" / "old.json").write_text('{"trial": {"no": "such field"}, "error": 0.0}')
    (cache / "isoflop-mlstm" / "half.json").write_text("{")
    assert summary(list(kept_verdicts(DEVICE))) == expected
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "another GPU")
    assert summary(list(kept_verdicts(DEVICE))) == []
