"""Models rebuilt from a run table are the ones that were counted there, or none."""

import polars as pl
import pytest

from sweeps.run_models import config_of, serving_costs
from sweeps.serving import serving_cost
from xlstm.accounting import count_parameters, mlstm_config, transformer_config
from xlstm.config import ModelConfig


def row(config: ModelConfig, **changes: object) -> dict[str, object]:
    return {
        "arch": config.arch,
        "context_length": 4096,
        "d_model": config.d_model,
        "num_blocks": config.num_blocks,
        "num_heads": config.num_heads,
        "N": float(count_parameters(config)),
        "N_non_embedding": float(count_parameters(config, embedding=False)),
    } | changes


@pytest.mark.parametrize("build", [mlstm_config, transformer_config])
@pytest.mark.parametrize("multiple", [64, 16])
def test_shape_and_count_give_the_model_back(build, multiple: int) -> None:  # type: ignore[no-untyped-def]
    config = build(d_model=320, num_blocks=6, num_heads=4, vocab_size=258, ffn_multiple_of=multiple)
    assert config_of(row(config)) == config


def test_a_foreign_model_is_not_taken_for_ours() -> None:
    config = mlstm_config(d_model=512, num_blocks=10, num_heads=4, vocab_size=50304)
    for changes in ({"N": 1e8}, {"N_non_embedding": None}, {"d_model": None}, {"arch": "mamba"}):
        assert config_of(row(config, **changes)) is None


def test_groups_with_known_shapes_have_a_cost() -> None:
    configs = [mlstm_config(d_model=d, num_blocks=8, num_heads=4, vocab_size=50304) for d in (256, 512)]
    runs = pl.DataFrame([*map(row, configs), row(configs[0], arch="theirs")])
    costs = serving_costs(runs, 1e9)
    assert set(costs) == {("mlstm", 4096)}
    expected = serving_cost(configs, 1e9, prompt_length=0, generated_length=4096)
    N = pl.Series([1e7, 1e8]).to_numpy()
    assert costs["mlstm", 4096](N) == pytest.approx(expected(N))
