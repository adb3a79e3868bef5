"""Serving cost of each architecture from its own decode count."""

import numpy as np
import pytest

from sweeps.laws import LAWS
from sweeps.laws.inference_cost import serving_optimum
from sweeps.serving import serving_cost
from xlstm.accounting import count_parameters, decode_flops, mlstm_config, transformer_config

SHAPES = [(512, 10), (768, 12), (1024, 24), (2048, 24)]
MLSTM = [mlstm_config(d_model=d, num_blocks=b, num_heads=4, vocab_size=50304) for d, b in SHAPES]
TRANSFORMER = [transformer_config(d_model=d, num_blocks=b, num_heads=8, vocab_size=50304) for d, b in SHAPES]
PARAMS = np.array([406.4, 410.7, 1.69, 0.336, 0.283])


@pytest.mark.parametrize("configs", [MLSTM, TRANSFORMER])
def test_the_curve_goes_through_the_shapes(configs: list) -> None:  # type: ignore[type-arg]
    cost = serving_cost(configs, 1e9, prompt_length=0, generated_length=2048)
    for config in configs:
        exact = 1e9 * decode_flops(config, 1024)
        assert cost(np.array(float(count_parameters(config)))) == pytest.approx(exact, rel=0.03)


def test_long_context_moves_the_served_transformer_and_not_the_mlstm() -> None:
    def optimum(configs: list, length: int) -> float:  # type: ignore[type-arg]
        cost = serving_cost(configs, 1e12, prompt_length=0, generated_length=length)
        return float(serving_optimum(LAWS["chinchilla"], PARAMS, 1e21, cost).N[0])

    assert optimum(MLSTM, 65536) == pytest.approx(optimum(MLSTM, 1024), rel=1e-6)
    assert abs(np.log(optimum(TRANSFORMER, 65536) / optimum(TRANSFORMER, 1024))) > 0.05


def test_prompts_cost_too() -> None:
    N = np.array(1e8)
    bare = serving_cost(MLSTM, 1e9, prompt_length=0, generated_length=100)(N)
    prompted = serving_cost(MLSTM, 1e9, prompt_length=900, generated_length=100)(N)
    assert prompted == pytest.approx(10 * bare, rel=1e-9)
