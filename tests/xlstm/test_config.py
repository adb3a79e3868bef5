"""Configurations refuse shapes that no model has."""

import subprocess
import sys
from typing import Any

import pytest

from xlstm.config import MLSTMConfig, TransformerConfig

TRANSFORMER = {"vocab_size": 256, "d_model": 32, "num_blocks": 2, "num_heads": 4, "ffn_dim": 64}
MLSTM = {**TRANSFORMER, "head_dim_qk": 4}


def test_head_widths() -> None:
    assert TransformerConfig(**TRANSFORMER).head_dim == 8
    assert MLSTMConfig(**MLSTM).head_dim_v == 8


@pytest.mark.parametrize("name", sorted(MLSTM))
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_are_positive(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"MLSTMConfig.{name} = {value}: must be positive"):
        MLSTMConfig(**{**MLSTM, name: value})


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (TransformerConfig, {**TRANSFORMER, "num_heads": 5}, "d_model = 32 must be a multiple of 2"),
        (TransformerConfig, {**TRANSFORMER, "num_heads": 32}, "rotary positions pair the channels"),
        (MLSTMConfig, {**MLSTM, "num_heads": 5}, "d_model = 32 must be a multiple of num_heads = 5"),
    ],
)
def test_heads_divide_the_width(config: Any, fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize("module", ["xlstm", "xlstm.config", "xlstm.run_spec", "xlstm.accounting"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
