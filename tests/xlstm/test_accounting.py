"""Accounting against the paper's worked examples, against built models and against torch's own counter."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from xlstm.accounting import (
    BytesPerElement,
    count_parameters,
    decode_bytes,
    decode_flops,
    ffn_width,
    forward_flops,
    mlstm_config,
    parameters_by_part,
    state_bytes,
    training_flops,
    transformer_config,
)
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.models import build_model

REPOSITORY = Path(__file__).parents[2]
TABLE = REPOSITORY.parent / "shared" / "data" / "paper" / "tidy" / "worked_flop_examples.csv"
FACTS = json.loads((REPOSITORY / "tests" / "reference" / "paper_accounting.json").read_text())
PARTS = {
    ".mlstm_layer.": "mixer",
    ".attention.": "mixer",
    ".ffn.": "ffn",
    "embedding": "embedding",
    "lm_head": "lm_head",
}
"""Part of a parameter by a mark in its name; norms have none."""
ALTERNATIVE: dict[str, Any] = {"transformer": "chinchilla", "mlstm": "tfla"}


def paper_config(arch: str, num_blocks: int, d_model: int, num_heads: int) -> ModelConfig:
    build = mlstm_config if arch == "mlstm" else transformer_config
    return build(vocab_size=50304, num_blocks=num_blocks, d_model=d_model, num_heads=num_heads)


def small_configs() -> st.SearchStrategy[ModelConfig]:
    """Every shape that a test can build: heads, widths and vocabularies that share no factor too."""
    sizes = {"vocab_size": st.integers(1, 70), "num_blocks": st.integers(1, 3), "ffn_dim": st.integers(1, 40)}

    def transformer(heads: int, half: int, **fields: int) -> ModelConfig:
        return TransformerConfig(d_model=2 * heads * half, num_heads=heads, **fields)

    def mlstm(heads: int, width: int, qk: int, chunk: int, **fields: int) -> ModelConfig:
        return MLSTMConfig(
            d_model=heads * width, num_heads=heads, head_dim_qk=qk, chunk_size=chunk, **fields
        )  # fmt: skip

    small = st.integers(1, 5)
    return st.one_of(
        st.builds(transformer, heads=small, half=small, **sizes),
        st.builds(mlstm, heads=small, width=small, qk=small, chunk=st.sampled_from([8, 64]), **sizes),
    )


@pytest.mark.parametrize("fact", FACTS["examples"], ids=lambda f: f"{f['arch']}-{f['d_model']}")
def test_facts_of_the_paper(fact: dict[str, Any]) -> None:
    config = paper_config(fact["arch"], fact["num_blocks"], fact["d_model"], fact["num_heads"])
    context = fact["context_length"]
    assert config.ffn_dim == fact["ffn_dim"]
    assert count_parameters(config) == fact["parameters"]
    assert count_parameters(config, embedding=False) == fact["non_embedding"]
    assert training_flops(config, context, context) == pytest.approx(fact["flops_per_sequence"], rel=1e-14)
    alternative = training_flops(config, context, 1, mode=ALTERNATIVE[fact["arch"]])
    assert alternative == pytest.approx(fact["alternative_flops_per_token"], rel=1e-14)


def test_flops_of_a_published_run() -> None:
    config = paper_config("transformer", 12, 768, 12)
    assert training_flops(config, 8192, 128 * 3500 * 8192) == pytest.approx(FACTS["run"]["flops"], rel=1e-8)


@pytest.mark.skipif(not TABLE.exists(), reason="the paper's data is not beside this checkout")
def test_every_worked_example_by_part() -> None:
    rows = list(csv.DictReader(TABLE.open()))
    assert len(rows) == 27
    for row in rows:
        family, _, blocks, width, heads = row["model"].split()
        number, d, context = int(heads[2:]), int(width[2:]), int(row["ctx"])
        arch = "mlstm" if family == "mlstm" else "transformer"
        config = paper_config(arch, int(blocks[2:]), d, number if arch == "mlstm" else d // number)
        assert count_parameters(config) == float(row["params"])
        for prefix, mode in (("default", None), ("alt", ALTERNATIVE[arch])):
            parts = forward_flops(config, context, mode=mode)
            known = {part: float(row[f"{prefix}_{part}"]) * context / 3 for part in ("lin", "mix", "other")}
            # The paper files the sigmoid of the output gate under "linear".
            assert parts.linear + parts.elementwise == pytest.approx(known["lin"] + known["other"], rel=1e-14)
            assert parts.mixing == pytest.approx(known["mix"], rel=1e-14)


@settings(max_examples=60, deadline=None)
@given(config=small_configs())
def test_parameters_equal_those_of_the_model(config: ModelConfig) -> None:
    model, parts = build_model(config), parameters_by_part(config)
    counted = dict.fromkeys(("embedding", "mixer", "ffn", "norms", "lm_head"), 0)
    for name, parameter in model.named_parameters():
        counted[next((part for mark, part in PARTS.items() if mark in name), "norms")] += parameter.numel()
    assert counted == {part: getattr(parts, part) for part in counted}
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)
    left = counted["mixer"] + counted["ffn"] + counted["norms"]
    assert left == count_parameters(config, embedding=False)


@settings(max_examples=30, deadline=None)
@given(config=small_configs(), length=st.integers(1, 30))
def test_linear_flops_equal_the_products_that_torch_counts(config: ModelConfig, length: int) -> None:
    """`aten.mm` in forward and backward; the embedding is looked up, and mixing multiplies by batches."""
    model = build_model(config)
    tokens = torch.randint(config.vocab_size, (2, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    products = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in products.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert linear == 3 * 2 * forward_flops(config, length).linear


@pytest.mark.parametrize("length", [64, 256])
def test_attention_products_equal_what_torch_counts(length: int) -> None:
    """torch counts all T^2, as "chinchilla" does, and no softmax."""
    config = transformer_config(vocab_size=16, d_model=64, num_blocks=2, num_heads=2)
    model = build_model(config)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(torch.randint(16, (1, length)))
    products = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    softmax = config.num_blocks * 3 * config.num_heads * length**2
    assert products == forward_flops(config, length, mode="chinchilla").mixing - softmax


@pytest.mark.parametrize("length", [64, 256, 1024])
def test_cell_products_are_most_of_what_is_counted(length: int) -> None:
    """The reference multiplies what the formula says: scores, values, state in and out.

    The formula adds what is not a product (gates, exponentials, norms). Of the two counts, "tfla" has the
    terms of the products apart, so it is the one compared.
    """
    config = mlstm_config(vocab_size=16, d_model=256, num_blocks=1, num_heads=1, chunk_size=16)
    model = build_model(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(16, (1, length)))
    products = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    ours = forward_flops(config, length, mode="tfla").mixing
    assert ours == pytest.approx(products, rel=0.04)


@given(
    config=small_configs(),
    context=st.integers(1, 4096),
    tokens=st.integers(1, 10**12),
    factor=st.integers(2, 5),
)
def test_flops_are_linear_in_tokens(config: ModelConfig, context: int, tokens: int, factor: int) -> None:
    once = training_flops(config, context, tokens)
    assert training_flops(config, context, factor * tokens) == pytest.approx(factor * once, rel=1e-12)
    assert once == pytest.approx(3 * forward_flops(config, context).total * tokens / context, rel=1e-12)


def test_attention_grows_with_the_context_and_the_cell_does_not() -> None:
    transformer = paper_config("transformer", 12, 768, 12)
    mlstm = paper_config("mlstm", 12, 768, 6)
    assert training_flops(transformer, 16384, 1) > 1.3 * training_flops(transformer, 8192, 1)
    assert training_flops(mlstm, 16384, 1) == training_flops(mlstm, 8192, 1)


def test_a_context_that_ends_within_a_chunk() -> None:
    """The last chunk counts at its length; a context shorter than a chunk is one chunk of that length."""
    config = paper_config("mlstm", 2, 512, 4)
    counts = [forward_flops(config, T).mixing for T in (64, 65, 127, 128)]
    assert counts == sorted(counts)
    assert counts[1] - counts[0] == forward_flops(config, 1).mixing
    assert counts[3] == 2 * counts[0]


@pytest.mark.parametrize(
    ("d_model", "down", "up"),
    [(384, 1024, 1088), (512, 1408, 1408), (768, 2048, 2112), (1152, 3072, 3136), (2304, 6144, 6208)],
)
def test_the_two_rules_of_the_ffn_width(d_model: int, down: int, up: int) -> None:
    assert ffn_width(d_model, fraction="down") == down
    assert ffn_width(d_model, fraction="up") == up


def test_a_narrow_ffn_is_at_least_one_multiple() -> None:
    assert ffn_width(1, factor=0.5, fraction="down") == 64


def test_a_mode_of_the_other_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mode = 'tfla': a Transformer is counted by"):
        training_flops(paper_config("transformer", 2, 512, 8), 128, 128, mode="tfla")
    with pytest.raises(ValueError, match=r"mode = 'chinchilla': an mLSTM is counted by"):
        training_flops(paper_config("mlstm", 2, 512, 4), 128, 128, mode="chinchilla")
    with pytest.raises(ValueError, match="context_length = 0"):
        forward_flops(paper_config("mlstm", 2, 512, 4), 0)


def test_a_decode_step_of_the_7b_mlstm() -> None:
    config, facts = paper_config("mlstm", 32, 4096, 8), FACTS["mlstm_7b_decode"]
    assert decode_flops(config, 0) == pytest.approx(facts["flops_batch_1"], rel=5e-4)
    assert decode_bytes(config, 0) == pytest.approx(facts["bytes_batch_1"], rel=5e-4)
    for batch_size, intensity in zip((1, 8, 64), facts["intensity"], strict=True):
        ratio = decode_flops(config, 0, batch_size=batch_size) / decode_bytes(
            config, 0, batch_size=batch_size
        )
        assert ratio == pytest.approx(intensity, rel=2e-3)
    assert state_bytes(config, 10**6) == pytest.approx(32 * facts["state_mib_per_block"] * 2**20, rel=3e-3)


def test_a_decode_step_of_a_transformer_reads_weights_and_cache() -> None:
    config = paper_config("transformer", 24, 2048, 16)
    weights = 2 * (count_parameters(config) - 50304 * 2048)
    assert decode_bytes(config, 0) > weights
    cache = decode_bytes(config, 2048) - decode_bytes(config, 0)
    assert cache == state_bytes(config, 2048) == 24 * 2048 * 2 * 2048 * 2
    halved = BytesPerElement(activations=1)
    assert state_bytes(config, 2048, batch_size=3, bytes_per=halved) == 3 * cache / 2
    assert decode_flops(config, 2048) - decode_flops(config, 0) == 24 * 2048 * (4 * 2048 + 5 * 16)
