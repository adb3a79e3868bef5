"""Prefill, memory, intensity and the named conventions, against the paper's numbers and sums by hand."""

import csv
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xlstm.test_accounting import REPOSITORY, small_configs
from xlstm.accounting import (
    backward_flops,
    count_parameters,
    decode_bytes,
    decode_flops,
    decode_intensity,
    flop_convention,
    forward_flops,
    mlstm_config,
    parameters_by_part,
    prefill_bytes,
    prefill_flops,
    prefill_intensity,
    state_bytes,
    training_bytes,
    training_flops,
    training_intensity,
    transformer_config,
)
from xlstm.accounting.cells import chunk_backward, chunk_tfla, parallel, recurrent_step
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig

TABLE = REPOSITORY.parent / "shared" / "data" / "paper" / "tidy" / "worked_flop_examples.csv"
VOCABULARY = 50304

LLAMA_1B = transformer_config(d_model=2048, num_blocks=24, num_heads=16, vocab_size=VOCABULARY)
LLAMA_7B = TransformerConfig(vocab_size=VOCABULARY, d_model=4096, num_blocks=32, num_heads=32, ffn_dim=11008)
XLSTM_1B = mlstm_config(d_model=2048, num_blocks=24, num_heads=4, vocab_size=VOCABULARY, chunk_size=128)
XLSTM_7B = mlstm_config(d_model=4096, num_blocks=32, num_heads=8, vocab_size=VOCABULARY, chunk_size=128)


@pytest.mark.skipif(not TABLE.exists(), reason="the paper's data is not beside this checkout")
def test_every_worked_example_under_every_convention() -> None:
    """All 27 rows to 1e-9 and better: both modes, forward and backward, and the grids' unrounded width."""
    rows = list(csv.DictReader(TABLE.open()))
    assert len(rows) == 27
    for row in rows:
        family, _, blocks, width, heads = row["model"].split()
        d, number, T = int(width[2:]), int(heads[2:]), int(row["ctx"])
        common: dict[str, Any] = {"d_model": d, "num_blocks": int(blocks[2:]), "vocab_size": VOCABULARY}
        if family == "mlstm":
            config: ModelConfig = mlstm_config(num_heads=number, **common)
        else:
            config = transformer_config(num_heads=d // number, **common)
        other: Any = "tfla" if family == "mlstm" else "chinchilla"
        known = {name: float(value) for name, value in row.items() if name != "model"}
        assert config.ffn_dim == known["ffn_dim"]
        assert count_parameters(config) == known["params"]
        assert count_parameters(config, embedding=False) == known["params_nonemb"]
        for prefix, mode in (("default", None), ("alt", other)):
            forward = forward_flops(config, T, mode=mode).total
            assert forward / T == pytest.approx(known[f"{prefix}_fw_per_tok"], rel=1e-12)
            both = forward + backward_flops(config, T, mode=mode)
            assert both / T == pytest.approx(known[f"{prefix}_fwbw_per_tok"], rel=1e-12)
        per_sequence = training_flops(config, T, T)
        assert per_sequence == pytest.approx(known["default_fwbw_per_seq"], rel=1e-12)
        grid = training_flops(config, T, T, ffn_dim=2.667 * d)
        assert grid == pytest.approx(known["grid_fwbw_per_seq"], rel=1e-12)
        assert per_sequence / T / (6 * known["params"]) == pytest.approx(known["fwbw_over_6N"], rel=1e-12)
        share = forward_flops(config, T).mixing / forward_flops(config, T).total
        assert share == pytest.approx(known["mix_share"], rel=1e-12)
        ratio = training_flops(config, T, T, mode=other) / per_sequence
        assert ratio == pytest.approx(known["alt_over_default"], rel=1e-12)


@pytest.mark.parametrize(
    ("config", "length", "flops", "moved", "intensity"),
    [
        (LLAMA_1B, 2048, 5.516e12, 7.286e9, 757),
        (LLAMA_1B, 16384, 7.444e13, 3.985e10, 1868),
        (LLAMA_7B, 2048, 2.797e13, 2.576e10, 1086),
        (XLSTM_1B, 2048, 5.109e12, 9.811e9, 521),
        (XLSTM_1B, 16384, 4.087e13, 6.004e10, 681),
        (XLSTM_7B, 2048, 2.679e13, 3.242e10, 826),
    ],
)
def test_prefill_as_the_authors_count_it(
    config: ModelConfig, length: int, flops: float, moved: float, intensity: float
) -> None:
    """PAPER.md, section 2.6, to the digits that it gives."""
    found = prefill_intensity(config, length)
    assert found.flops == pytest.approx(flops, rel=2e-4)
    assert found.bytes == pytest.approx(moved, rel=2e-4)
    assert found.ratio == pytest.approx(intensity, abs=0.5)


@pytest.mark.parametrize(("batch_size", "intensity"), [(1, 0.995), (8, 6.97), (64, 27.9)])
def test_a_recurrent_step(batch_size: int, intensity: float) -> None:
    found = decode_intensity(XLSTM_7B, 10_000, batch_size=batch_size)
    assert found.ratio == pytest.approx(intensity, rel=2e-3)


def test_weights_are_read_in_every_step_and_theirs_once_in_a_hundred() -> None:
    """PAPER.md, section 2.6: 4.41e8 bytes a step, less than the weights alone."""
    weights = 2 * (count_parameters(LLAMA_1B) - parameters_by_part(LLAMA_1B).embedding)
    theirs = decode_bytes(LLAMA_1B, 2048, accounting="paper")
    assert theirs == pytest.approx(4.41e8, rel=1e-3)
    assert theirs < weights < decode_bytes(LLAMA_1B, 2048)
    mean_cache = 49.5 * state_bytes(LLAMA_1B, 1)  # their cache is that of the middle of 100 steps
    assert decode_bytes(LLAMA_1B, 2048) - theirs == pytest.approx(0.99 * weights - mean_cache, rel=1e-12)
    at_once = decode_bytes(LLAMA_1B, 2048, accounting="paper", generated=1)
    assert at_once == decode_bytes(LLAMA_1B, 2048)
    assert decode_bytes(XLSTM_1B, 2048, accounting="paper") == decode_bytes(XLSTM_1B, 2048)


def test_their_decode_flops_count_the_prompt() -> None:
    ours, theirs = decode_flops(LLAMA_1B, 2048), decode_flops(LLAMA_1B, 2048, accounting="paper")
    d, heads, ffn, generated = 2048, 16, 5504, 100
    block = 8 * d + 8 * d * d + 6 * d * ffn + 2 * ffn
    scores = 2048 * generated + generated * (generated + 1) / 2
    attention = 2 * 0.65 * heads * (128 + 128 + 2.5) * scores
    head = 2 * d * VOCABULARY * (generated + 1)
    assert theirs == pytest.approx((24 * (2148 * block + attention) + head) / generated, rel=1e-12)
    assert ours < theirs / 10
    assert decode_flops(XLSTM_1B, 9, accounting="paper") == decode_flops(XLSTM_1B, 9)


def test_grouped_keys_and_values() -> None:
    """The out-projection is as wide as the query heads; theirs as the key and value heads."""
    d, blocks, head = 4096, 32, 128
    full, grouped = prefill_flops(LLAMA_7B, 100), prefill_flops(LLAMA_7B, 100, num_kv_heads=8)
    assert full - grouped == 100 * blocks * 2 * d * head * 2 * (32 - 8)
    theirs = prefill_flops(LLAMA_7B, 100, num_kv_heads=8, accounting="paper")
    assert grouped - theirs == 100 * blocks * 2 * d * head * (32 - 8)
    assert prefill_flops(LLAMA_7B, 100, accounting="paper") == full
    assert state_bytes(LLAMA_7B, 100, num_kv_heads=8) == state_bytes(LLAMA_7B, 100) // 4
    fewer_weights = 2 * blocks * 2 * d * head * (32 - 8)
    fewer_activations = blocks * (100 * 2 * head * 24 * 2) * 2
    saved = prefill_bytes(LLAMA_7B, 100) - prefill_bytes(LLAMA_7B, 100, num_kv_heads=8)
    assert saved == fewer_weights + fewer_activations


@settings(deadline=None, derandomize=True, max_examples=60)
@given(config=small_configs(), length=st.integers(1, 300), batch_size=st.integers(1, 5))
def test_a_batch_shares_the_weights_and_nothing_else(
    config: ModelConfig, length: int, batch_size: int
) -> None:
    weights = 2 * (count_parameters(config) - parameters_by_part(config).embedding)
    for moved in (prefill_bytes, decode_bytes):
        one, many = moved(config, length), moved(config, length, batch_size=batch_size)
        assert many - weights == batch_size * (one - weights)
    for flops in (prefill_flops, decode_flops):
        assert flops(config, length, batch_size=batch_size) == pytest.approx(
            batch_size * flops(config, length), rel=1e-12
        )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(config=small_configs(), length=st.integers(1, 300))
def test_training_moves_three_forward_passes_with_all_logits(config: ModelConfig, length: int) -> None:
    head = (length - 1) * (2 * config.d_model + config.vocab_size) * 2
    assert training_bytes(config, length) == 3 * (prefill_bytes(config, length) + head)
    found = training_intensity(config, length, batch_size=3)
    assert found.ratio == training_flops(config, length, 3 * length) / training_bytes(
        config, length, batch_size=3
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(config=small_configs().filter(lambda c: isinstance(c, MLSTMConfig)), length=st.integers(1, 200))
def test_the_forms_of_the_cell(config: MLSTMConfig, length: int) -> None:
    K, V, cells = config.head_dim_qk, config.head_dim_v, config.num_blocks * config.num_heads
    recurrent = forward_flops(config, length, mode="recurrent").mixing
    assert recurrent == cells * length * recurrent_step(K, V)
    assert forward_flops(config, length, mode="parallel").mixing == cells * parallel(length, K, V)
    halved = forward_flops(config, length, mode="parallel", causal_factor=0.5).mixing
    assert halved == pytest.approx(cells * parallel(length, K, V, 0.5), rel=1e-12)
    parts = {mode: forward_flops(config, length, mode=mode) for mode in ("first", "tfla", "recurrent")}
    assert len({part.linear for part in parts.values()}) == 1


def test_products_of_a_chunk_by_hand() -> None:
    """The leading terms: scores and values 2 L^2 (K + V), state in and out 2 L K V each; and backward."""
    L, K, V = 512, 4096, 8192
    products = 2 * L * L * (K + V) + 2 * (2 * L * K * V)
    assert chunk_tfla(L, K, V, 1.0) == pytest.approx(products, rel=2e-3)
    gradients = 2 * L * L * K + 4 * L * L * (K + V) + 2 * L * K * V + 2 * L * K * V + 8 * L * K * V
    assert chunk_backward(L, K, V, 1.0) == pytest.approx(gradients, rel=2e-3)
    assert chunk_tfla(64, 32, 64) == chunk_tfla(64, 32, 64, 1.0)
    assert chunk_tfla(128, 32, 64) == chunk_tfla(128, 32, 64, 0.75)


def test_backward_conventions() -> None:
    forward = forward_flops(XLSTM_1B, 2048)
    twice = backward_flops(XLSTM_1B, 2048)
    assert twice == 2 * forward.total
    more = backward_flops(XLSTM_1B, 2048, backward="mixing_2.5_forward")
    assert more - twice == pytest.approx(0.5 * forward.mixing, rel=1e-9)
    kernels = backward_flops(XLSTM_1B, 2048, mode="tfla", backward="tfla")
    chunks = 24 * 4 * 16 * chunk_backward(128, 256, 512)
    gates = 24 * (0.5 * 2048 * 2049 + 8 * 2048 * 4 * 256)
    assert kernels - 2 * (forward.linear + forward.elementwise) == pytest.approx(chunks + gates, rel=1e-9)
    total = training_flops(XLSTM_1B, 2048, 2048, mode="tfla", backward="tfla")
    assert total == pytest.approx(forward_flops(XLSTM_1B, 2048, mode="tfla").total + kernels, rel=1e-12)
    with pytest.raises(ValueError, match="a Transformer has none of them"):
        backward_flops(LLAMA_1B, 2048, backward="tfla")


def test_a_convention_has_a_name() -> None:
    assert flop_convention(LLAMA_1B).name == "distill_scaling"
    assert flop_convention(XLSTM_1B).name == "first"
    assert flop_convention(XLSTM_1B, "tfla", "tfla").name == "tfla, backward tfla"
    with pytest.raises(ValueError, match="'first': a Transformer is counted by"):
        flop_convention(LLAMA_1B, "first")


def test_a_step_of_attention_grows_and_one_of_the_cell_does_not() -> None:
    assert decode_bytes(XLSTM_7B, 0) == decode_bytes(XLSTM_7B, 10**6)
    grown = decode_bytes(LLAMA_7B, 16_384) - decode_bytes(LLAMA_7B, 0)
    assert grown == state_bytes(LLAMA_7B, 16_384)
