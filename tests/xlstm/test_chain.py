"""Which steps are a chain of maps: as was measured on an H100 (docs/inference.md)."""

import pytest

from xlstm.accounting import mlstm_config
from xlstm.chain import most_chained
from xlstm.generation import random_model
from xlstm.generation.packed import PackedModel


def test_narrow_models_have_longer_chains() -> None:
    assert [most_chained(d_model) for d_model in (768, 1024, 1025, 2048)] == [16, 16, 8, 8]


@pytest.mark.parametrize(("d_model", "most"), [(64, 16), (1088, 8)])
def test_a_packed_step_is_a_chain_up_to_there(d_model: int, most: int) -> None:
    model = random_model(mlstm_config(vocab_size=64, d_model=d_model, num_blocks=1, num_heads=1))
    packed = [PackedModel(model, batch) for batch in (most, most + 1)]
    assert [of.is_chain for of in packed] == [True, False]
