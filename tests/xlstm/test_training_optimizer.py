"""The schedule's shape, and which parameters decay."""

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.xlstm.devices import DEVICES
from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.models import build_model
from xlstm.run_spec import OptimizerSpec
from xlstm.training.optimizer import adamw, clip_in_step, learning_rate
from xlstm.training.strategies import gradient_norm

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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [0.5, 1e9], ids=["beyond the limit", "within"])
def test_a_step_that_clips_is_clipping_and_then_a_step(device: str, limit: float) -> None:
    """Torch's own clipping, in float64: weights, moments, norms and what is left of the gradients. Within the
    limit a step without clipping, to the last bit."""
    spec = dataclasses.replace(SPEC, peak_lr=1e-2)
    torch.manual_seed(0)
    start = torch.nn.Sequential(torch.nn.Linear(70, 300), torch.nn.LayerNorm(300), torch.nn.Linear(300, 3))
    models = [copy.deepcopy(start).to(device), copy.deepcopy(start).to(device), copy.deepcopy(start).double()]
    ours, unclipped, exact = models
    optimizers = [adamw(model, spec) for model in models]
    for step in range(4):
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            drawn = torch.randn(parameters[2].shape) * 3**step / 20
            for parameter in parameters:
                parameter.grad = drawn.to(parameter, copy=True)  # each its own: a step writes there
        norm = gradient_norm(ours.parameters())
        wanted = torch.nn.utils.clip_grad_norm_(exact.parameters(), limit)
        assert norm.item() == pytest.approx(wanted.item(), rel=1e-6)
        clip_in_step(optimizers[0], norm, limit)
        for optimizer in optimizers:
            optimizer.step()
        for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-6)
            assert a.grad is not None
            torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=1e-6, atol=0)
    for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            found, is_right = optimizers[0].state[a][moment].cpu().double(), optimizers[2].state[b][moment]
            assert (found - is_right).abs().max() < 1e-5 * is_right.abs().max()
    same = [torch.equal(a, b) for a, b in zip(ours.parameters(), unclipped.parameters(), strict=True)]
    assert all(same) == (limit == 1e9)


def test_a_checkpoint_holds_no_clipping() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = adamw(model, SPEC)
    clip_in_step(optimizer, torch.tensor(3.0), 0.5)
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    assert all("grad_scale" not in group for group in optimizer.param_groups)
