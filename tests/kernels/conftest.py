"""Without a GPU, Triton's interpreter runs the kernels. It must be chosen before they are defined."""

import os
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The sequence kernels with the smallest blocks."""
    from kernels.mlstm import sequence_configs
    from tests.kernels.sequence_problems import TINY

    for table in ("SINGLE", "HALF"):
        monkeypatch.setattr(sequence_configs, table, (TINY,))
    return TINY
