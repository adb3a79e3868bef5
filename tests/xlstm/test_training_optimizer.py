"""The schedule's shape, and which parameters decay."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.models import build_model
from xlstm.run_spec import OptimizerSpec
from xlstm.training.optimizer import adamw, learning_rate

SPEC = OptimizerSpec(peak_lr=1.0, warmup_steps=10, cooldown_steps=20, cosine_floor=0.1)


def rates(steps: int, spec: OptimizerSpec) -> list[float]:
    return [learning_rate(step, steps, spec) for step in range(steps)]


def test_the_three_phases() -> None:
    lr = rates(131, SPEC)
    assert lr[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert lr[10] == 1.0
    assert lr[10 + 101 // 2] == pytest.approx(0.55, abs=0.01)  # half-way between peak and floor
    assert lr[110] == pytest.approx(0.1, abs=1e-3)
    assert lr[111:] == pytest.approx([0.1 * i / 21 for i in range(20, 0, -1)])


@given(
    warmup=st.integers(0, 30),
    cooldown=st.integers(0, 30),
    middle=st.integers(0, 50),
    floor=st.floats(0, 1),
    peak=st.floats(1e-6, 1.0),
)
def test_rises_then_falls_within_bounds(
    warmup: int, cooldown: int, middle: int, floor: float, peak: float
) -> None:
    spec = OptimizerSpec(peak_lr=peak, warmup_steps=warmup, cooldown_steps=cooldown, cosine_floor=floor)
    lr = rates(max(1, warmup + cooldown + middle), spec)
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in lr)
    assert all(a <= b for a, b in pairwise(lr[:warmup]))
    assert all(a >= b - 1e-12 for a, b in pairwise(lr[warmup:]))


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(vocab_size=11, d_model=8, num_blocks=2, num_heads=2, ffn_dim=16),
        MLSTMConfig(vocab_size=11, d_model=8, num_blocks=2, num_heads=2, ffn_dim=16, head_dim_qk=2),
    ],
    ids=lambda config: config.arch,
)
def test_only_matrices_of_linear_maps_decay(config: TransformerConfig | MLSTMConfig) -> None:
    model = build_model(config)
    optimizer = adamw(model, dataclasses.replace(SPEC, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if id(parameter) in linear else 0.0), name


def test_adamw_takes_the_specs_numbers() -> None:
    model = torch.nn.Linear(2, 2)
    spec = OptimizerSpec(peak_lr=0.5, warmup_steps=1, cooldown_steps=0, beta1=0.8, beta2=0.9, eps=1e-3)
    optimizer = adamw(model, spec)
    (group, _) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.9), 1e-3)
