"""Stacks of the 2024 paper and the LSTM: names, counts against built models, causality, continuation."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kernels.slstm.reference import slstm_recurrent
from xlstm.accounting import (
    build_config,
    count_parameters,
    decode_bytes,
    decode_flops,
    forward_flops,
    parameters_by_part,
    prefill_flops,
    state_bytes,
    training_bytes,
    training_flops,
)
from xlstm.arch_names import SWITCHES, canonical_arch, parse_stack
from xlstm.config import LSTMConfig, ModelConfig, XLSTMConfig
from xlstm.models import LanguageModel, build_model, next_token_loss
from xlstm.models.xlstm import MLSTMBlock, SLSTMBlock, _without_normaliser

STACKS = ["xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]", "xlstm[@1]", "lstm"]
ABLATIONS = [f"xlstm[1:1]-{suffix}" for suffix in SWITCHES] + ["xlstm[1:1]-sigmoid-no-mixing-no-normaliser"]
ALL = pytest.mark.parametrize("arch", STACKS + ABLATIONS)


def small(arch: str, **change: Any) -> ModelConfig:
    shape = {"vocab_size": 50, "d_model": 24, "num_blocks": 2, "num_heads": 3, "ffn_multiple_of": 8}
    return build_config(arch, **{**shape, "chunk_size": 8, **change})


def lively(config: ModelConfig, seed: int = 0) -> LanguageModel:
    """In float64, with recurrent weights, biases and norms that are not at their start."""
    torch.manual_seed(seed)
    model = build_model(config).double()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "gate_preact" in name or "recurrent" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


# Names


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("slstm", "xlstm[0:1]"),
        ("xlstm[14:2]", "xlstm[7:1]"),
        ("xlstm[0:3]", "xlstm[0:1]"),
        ("xlstm[@1,3]-no-mixing", "xlstm[@1,3]-no-mixing"),
        ("slstm-sigmoid-no-normaliser", "xlstm[0:1]-sigmoid-no-normaliser"),
        ("mlstm", "mlstm"),
        ("lstm", "lstm"),
    ],
)
def test_one_name_for_one_architecture(name: str, canonical: str) -> None:
    assert canonical_arch(name) == canonical == canonical_arch(canonical)
    config = small(name, num_blocks=8)
    assert config.arch == canonical


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rnn", "is no architecture; there are mlstm, transformer, lstm, slstm"),
        ("xlstm[0:0]", "has no blocks"),
        ("xlstm[@3,1]", "positions must ascend"),
        ("xlstm[1:1]-zero-bias-constant-bias", "is no architecture"),
        ("xlstm[1:1]-constant-bias-zero-bias", "sets one switch twice"),
        ("mlstm-sigmoid", "is no architecture"),
    ],
)
def test_what_is_no_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_arch(name)


@pytest.mark.parametrize(
    ("name", "depth", "places"),
    [
        ("xlstm[1:1]", 4, (1, 3)),
        ("xlstm[7:1]", 16, (7, 15)),
        ("xlstm[1:2]", 6, (1, 2, 4, 5)),
        ("xlstm[1:0]", 3, ()),
        ("slstm", 3, (0, 1, 2)),
        ("xlstm[@0,2]", 3, (0, 2)),
    ],
)
def test_where_the_slstm_blocks_are(name: str, depth: int, places: tuple[int, ...]) -> None:
    assert parse_stack(name).slstm_at(depth) == places
    kinds = [
        isinstance(block, SLSTMBlock) for block in build_model(small(name, num_blocks=depth)).backbone.blocks
    ]
    assert kinds == [j in places for j in range(depth)]


def test_a_depth_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_blocks = 6 must be a multiple of 8; or name the positions"):
        small("xlstm[7:1]", num_blocks=6)
    with pytest.raises(ValueError, match=r"there is no block 5 among num_blocks = 5"):
        small("xlstm[@5]", num_blocks=5)


def test_a_config_that_contradicts_its_name_is_refused() -> None:
    shape: dict[str, Any] = {"vocab_size": 9, "d_model": 8, "num_blocks": 2, "num_heads": 2}
    fits: dict[str, Any] = {**shape, "inner_dim": 16, "ffn_dim": 8}
    XLSTMConfig(arch="xlstm[1:1]", **fits)
    for change, message in (
        ({"gating": "sigmoid"}, "gating = 'sigmoid': is not what xlstm"),
        ({"arch": "xlstm[2:2]"}, r"its one name is 'xlstm\[1:1\]'"),
        ({"inner_dim": 0}, "inner_dim = 0: must be positive"),
        ({"arch": "xlstm[0:1]"}, r"inner_dim = 16: must be 0, xlstm\[0:1\] has no mLSTM blocks"),
        ({"inner_dim": 18}, "must be a multiple of num_heads = 2 and of qkv_block = 4"),
        ({"num_heads": 16}, "d_model = 8 must be a multiple of num_heads = 16"),
        ({"conv_width": 0}, "conv_width = 0: must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            XLSTMConfig(**{"arch": "xlstm[1:1]", **fits, **change})


# Accounting


def configs() -> st.SearchStrategy[ModelConfig]:
    def build(arch: str, heads: int, width: int, periods: int, vocab: int, multiple: int) -> ModelConfig:
        depth = 2 * periods
        return build_config(
            arch, vocab_size=vocab, d_model=heads * width, num_blocks=depth, num_heads=heads,
            ffn_multiple_of=multiple, chunk_size=16,
        )  # fmt: skip

    return st.builds(
        build, st.sampled_from(STACKS + ABLATIONS), st.integers(1, 3), st.integers(2, 5), st.integers(1, 2),
        st.integers(1, 40), st.sampled_from([1, 8]),
    )  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True)
@given(config=configs())
def test_parameters_equal_those_of_the_model(config: ModelConfig) -> None:
    model, parts = build_model(config), parameters_by_part(config)
    counted = dict.fromkeys(("embedding", "mixer", "ffn", "norms", "lm_head"), 0)
    for name, parameter in model.named_parameters():
        *_, owner, _ = name.split(".")
        part = "norms" if owner in ("norm", "norm_ffn", "out_norm") else "mixer"
        part = next((kind for kind in ("embedding", "lm_head", "ffn") if f"{kind}." in name), part)
        counted["norms" if owner == "norm_ffn" else part] += parameter.numel()
    assert counted == {part: getattr(parts, part) for part in counted}


@pytest.mark.parametrize("kind", ["xlstm[1:0]", "xlstm[0:1]"])
def test_parameters_by_the_paper_s_formula(kind: str) -> None:
    """KERNELS.md 2.2, measured on the authors' package."""
    d, heads, V = 64, 4, 100
    config = build_config(kind, vocab_size=V, d_model=d, num_blocks=1, num_heads=heads)
    di, D, ff = 128, d // heads, 128
    mlstm = 2 * d * di + 12 * di + 5 * di + 2 * (3 * di * heads + heads) + 2 * di + di * d + d
    slstm = 5 * d + 8 * d * D + 4 * d + d + d + 3 * d * ff + d
    assert count_parameters(config, embedding=False) == (mlstm if kind == "xlstm[1:0]" else slstm) + d
    assert count_parameters(config) == count_parameters(config, embedding=False) + 2 * V * d


@settings(max_examples=8, deadline=None, derandomize=True)
@given(config=configs(), length=st.integers(1, 9))
def test_products_equal_those_that_torch_counts(config: ModelConfig, length: int) -> None:
    """All linear maps. The mLSTM cell's products are taken out; sLSTM and LSTM, one operator each, hide
    theirs."""
    model = build_model(config).eval()
    mlstm_cells: list[float] = []
    for block in model.backbone.blocks:
        if isinstance(block, MLSTMBlock):
            cell = block.cell

            def apart(*inputs: Tensor, cell: Any = cell, **options: Any) -> Any:
                with FlopCounterMode(display=False) as inner:
                    out = cell(*inputs, **options)
                mlstm_cells.append(inner.get_total_flops())
                return out

            block.cell = apart
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(config.vocab_size, (1, length)))
    counted = counter.get_total_flops() - sum(mlstm_cells)
    ours = forward_flops(config, length)
    if isinstance(config, LSTMConfig):
        assert counted == ours.logits
    else:
        assert counted == ours.linear


def test_products_of_the_slstm_cell() -> None:
    """The recurrent ones are all that the reference multiplies; the rest is 24 a channel."""
    config = small("slstm")
    x, R = torch.randn(1, 10, 4, 3, 8), torch.randn(3, 8, 4, 8)
    with FlopCounterMode(display=False) as counter:
        slstm_recurrent(x, R, None)
    ours = forward_flops(config, 10).mixing
    assert ours == 2 * (counter.get_total_flops() + 10 * 24 * 24)


def test_lstm_products() -> None:
    config = small("lstm")
    forward = forward_flops(config, 10)
    d = 24
    assert forward.projections == 2 * 10 * 2 * (4 * d * d)
    assert forward.mixing == 2 * 10 * (2 * 4 * d * d + 21 * d)
    with pytest.raises(ValueError, match="an LSTM is counted by"):
        forward_flops(config, 10, mode="tfla")


@ALL
def test_costs_are_finite_and_grow(arch: str) -> None:
    little, large = small(arch), small(arch, d_model=48)
    for cost in (
        lambda c: training_flops(c, 64, 640),
        lambda c: prefill_flops(c, 64),
        lambda c: decode_flops(c, 64),
        lambda c: decode_bytes(c, 64),
        lambda c: training_bytes(c, 64),
        lambda c: state_bytes(c, 64),
    ):
        assert 0 < cost(little) < cost(large) < 1e12
    assert state_bytes(little, 64) == state_bytes(little, 10**6)
    assert training_flops(little, 64, 640) == pytest.approx(30 * forward_flops(little, 64).total)


@pytest.mark.parametrize("arch", ["xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]", "lstm"])
def test_the_state_is_what_extend_returns(arch: str) -> None:
    model = build_model(small(arch))
    _, state = model.extend(tokens(1, 5))
    inputs, kept = 0, 0

    def walk(part: Any, top: bool) -> None:
        nonlocal kept
        if isinstance(part, Tensor):
            kept += part.numel()
        else:
            for item in part:
                walk(item, False)

    walk(state, True)
    if arch != "lstm":
        inputs = sum(layer[0].numel() for layer in state)
    assert state_bytes(small(arch), 5) == 4 * (kept - inputs) + 2 * inputs


# Models


@ALL
def test_a_later_token_changes_no_earlier_logits(arch: str) -> None:
    model, before = lively(small(arch)), tokens(2, 21)
    after = before.clone()
    after[:, 13] = (before[:, 13] + 1) % 50
    first, second = model(before), model(after)
    assert torch.equal(first[:, :13], second[:, :13])
    assert (first[:, 13:] != second[:, 13:]).any(-1).all()


@ALL
def test_piece_by_piece_equals_the_whole(arch: str) -> None:
    """Pieces shorter and longer than the convolution, and a state that is used twice."""
    model, text = lively(small(arch)), tokens(2, 9)
    whole = model(text)
    for cuts in ([1] * 9, [4, 5]):
        state: Any = None
        logits = []
        for piece in text.split(cuts, 1):
            model.extend(piece, state)
            part, state = model.extend(piece, state)
            logits.append(part)
        torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-9, atol=1e-11)


@ALL
def test_documents_are_computed_apart(arch: str) -> None:
    model, text = lively(small(arch)), tokens(2, 20)
    ids = torch.zeros(2, 20, dtype=torch.long)
    ids[0, 7:] = 1
    ids[0, 8:] = 2
    packed = model(text, document_ids=ids)
    alone = torch.cat([model(text[:1, a:b]) for a, b in ((0, 7), (7, 8), (8, 20))], 1)
    torch.testing.assert_close(packed, torch.cat([alone, model(text[1:])]), rtol=1e-9, atol=1e-12)
    grads = torch.autograd.grad(packed.sum(), list(model.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


@ALL
def test_a_new_model_knows_nothing_and_learns(arch: str) -> None:
    torch.manual_seed(0)
    model = build_model(small(arch))
    loss = next_token_loss(model(tokens(8, 40)), tokens(8, 40, seed=2))
    assert loss.item() == pytest.approx(math.log(50) + 0.2, abs=0.1)
    text = tokens(1, 9)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = next_token_loss(model(text[:, :-1]), text[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5


def test_the_mlstm_without_normaliser_written_out() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 7, 2, 4, dtype=torch.float64)
    i, f = torch.randn(2, 2, 7, 2, dtype=torch.float64)
    C, expected = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    for t in range(7):
        write = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t]) * i[:, t].exp()[..., None, None]
        C = f[:, t].sigmoid()[..., None, None] * C + write
        expected.append(torch.einsum("bhk,bhkv->bhv", q[:, t] / 2, C))
    h, state = _without_normaliser(q, k, v, i, f, input_gate="exp", return_final_state=True)
    torch.testing.assert_close(h, torch.stack(expected, 1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state[0] * state[2].exp()[..., None, None], C, rtol=1e-9, atol=1e-12)


def test_how_gates_start() -> None:
    """KERNELS.md 2.2: from long to short memory, and what the ablations start as."""
    block, cell = build_model(small("xlstm[1:1]", num_heads=4)).backbone.blocks
    assert block.fgate_preact.bias.tolist() == pytest.approx([3.0, 4.0, 5.0, 6.0])
    assert not block.fgate_preact.weight.any()
    assert not cell.recurrent.any()
    bias = cell.bias.view(4, 4, 6)
    assert not bias[:, [0, 2, 3]].any()
    expected = [5 - 12 * (j / 5) ** 1.6 for j in range(6)]
    assert bias[2, 1].tolist() == pytest.approx(expected, abs=1e-5)
    _, constant = build_model(small("xlstm[1:1]-constant-bias", num_heads=4)).backbone.blocks
    assert constant.bias.view(4, 4, 6)[0, 1].tolist() == pytest.approx([sum(expected) / 6] * 6, abs=1e-5)
    first, zero = build_model(small("xlstm[1:1]-zero-bias")).backbone.blocks
    assert not zero.bias.any()
    assert not first.fgate_preact.bias.any()


def test_switches_reach_the_cells() -> None:
    """Each ablation changes what a model computes, and no other weights than the recurrent ones."""
    text = tokens(2, 12)
    plain = lively(small("xlstm[1:1]"))
    for suffix in ("sigmoid", "no-mixing", "no-normaliser"):
        ablated = lively(small(f"xlstm[1:1]-{suffix}"))
        ablated.load_state_dict(plain.state_dict(), strict=suffix != "no-mixing")
        assert (ablated(text) - plain(text)).abs().max() > 1e-3, suffix
