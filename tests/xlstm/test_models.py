"""Both language models: what they compute, what they must not see, how they start, their weights' names."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.mlstm.reference import mlstm_recurrent
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.config import MLSTMConfig, ModelConfig
from xlstm.models import LanguageModel, build_model, next_token_loss
from xlstm.models.layers import RMSNorm, find_documents
from xlstm.models.mlstm import MLSTMLayer, MultiHeadNorm
from xlstm.models.transformer import rotate, rotation

MLSTM = mlstm_config(vocab_size=50, d_model=24, num_blocks=2, num_heads=3, ffn_multiple_of=8, chunk_size=8)
TRANSFORMER = transformer_config(vocab_size=50, d_model=24, num_blocks=2, num_heads=3, ffn_multiple_of=8)
BOTH = pytest.mark.parametrize("config", [MLSTM, TRANSFORMER], ids=lambda config: config.arch)


def lively(config: ModelConfig, seed: int = 0) -> LanguageModel:
    """A model in float64 whose gates and norms are not at their start, where much is zero or one."""
    torch.manual_seed(seed)
    model = build_model(config).double()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "gate_preact" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.5)
    return model


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


@BOTH
def test_a_later_token_changes_no_earlier_logits(config: ModelConfig) -> None:
    model, before = lively(config), tokens(2, 21)
    after = before.clone()
    after[:, 13] = (before[:, 13] + 1) % 50
    first, second = model(before), model(after)
    assert torch.equal(first[:, :13], second[:, :13])
    assert (first[:, 13:] != second[:, 13:]).any(-1).all()


@BOTH
def test_documents_are_computed_apart(config: ModelConfig) -> None:
    """Rows of packed documents give the logits, and the gradients, of the documents alone."""
    model, text = lively(config), tokens(2, 20)
    ids = torch.zeros(2, 20, dtype=torch.long)
    ids[0, 7:] = 1
    ids[0, 8:] = 2
    packed = model(text, document_ids=ids)
    alone = torch.cat([model(text[:1, a:b]) for a, b in ((0, 7), (7, 8), (8, 20))], 1)
    torch.testing.assert_close(packed, torch.cat([alone, model(text[1:])]), rtol=1e-9, atol=1e-12)
    weights = torch.randn(packed.shape, dtype=packed.dtype)
    parameters = list(model.parameters())
    packed_grads = torch.autograd.grad((packed * weights).sum(), parameters)
    grads = torch.autograd.grad(
        (alone * weights[:1]).sum() + (model(text[1:]) * weights[1:]).sum(), parameters
    )
    for actual, expected in zip(packed_grads, grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)


def test_documents_end_where_ids_change_and_with_rows() -> None:
    ids = torch.tensor([[0, 0, 5], [5, 5, 5]])
    assert find_documents(ids).cu_seqlens.tolist() == [0, 2, 3, 6]


@BOTH
@pytest.mark.parametrize("cuts", [(1,) * 15, (6, 9), (6, 1, 1, 7), (15,)])
def test_piece_by_piece_equals_the_whole(config: ModelConfig, cuts: tuple[int, ...]) -> None:
    model, text = lively(config), tokens(2, 15)
    state: Any = None
    logits = []
    for piece in text.split(list(cuts), 1):
        part, state = model.extend(piece, state)
        logits.append(part)
    torch.testing.assert_close(torch.cat(logits, 1), model(text), rtol=1e-9, atol=1e-12)


def test_a_state_is_not_changed_in_place() -> None:
    for config in (MLSTM, TRANSFORMER):
        model = lively(config)
        _, state = model.extend(tokens(1, 5))
        first, _ = model.extend(tokens(1, 1), state)
        second, _ = model.extend(tokens(1, 1), state)
        assert torch.equal(first, second)


def test_the_mlstm_layer_written_out() -> None:
    """Against the formulas, the cell step by step."""
    layer = lively(MLSTM).backbone.blocks[0].mlstm_layer
    assert isinstance(layer, MLSTMLayer)
    x = torch.randn(2, 19, 24, dtype=torch.float64)

    def heads(weight: Tensor) -> Tensor:
        return (x @ weight.T).view(2, 19, 3, -1)

    gates = [x @ gate.weight.T + gate.bias for gate in (layer.igate_preact, layer.fgate_preact)]
    h = mlstm_recurrent(
        heads(layer.q.weight), heads(layer.k.weight), heads(layer.v.weight), *gates, gate_soft_cap=15.0
    )
    centred = h - h.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).flatten(-2)
    gated = torch.sigmoid(x @ layer.ogate_preact.weight.T) * normed * layer.multihead_norm.weight
    torch.testing.assert_close(layer(x, None), gated @ layer.out_proj.weight.T, rtol=1e-9, atol=1e-12)


def test_attention_written_out() -> None:
    layer = lively(TRANSFORMER).backbone.blocks[0].attention
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    positions = rotation(torch.arange(9), 8, 500_000.0, torch.float64)
    q, k, v = ((x @ p.weight.T).view(1, 9, 3, 8).transpose(1, 2) for p in (layer.q, layer.k, layer.v))
    scores = rotate(q, positions) @ rotate(k, positions).transpose(-1, -2) / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    h = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(layer(x, positions, None), h @ layer.out_proj.weight.T, rtol=1e-9, atol=1e-12)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 16, dtype=torch.float64)
    by = rotation(torch.arange(40), 16, 500_000.0, torch.float64)
    products = rotate(q.expand(40, 16), by) @ rotate(k.expand(40, 16), by).T
    for distance in (0, 3, 17):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)
    assert (products.diagonal(-1) - products.diagonal(1)[:1]).abs().max() > 1e-3


def test_the_slowest_rotary_frequency_follows_theta() -> None:
    by = rotation(torch.tensor([1]), 8, 10_000.0, torch.float32)
    torch.testing.assert_close(by.sin[0].asin(), torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_norms() -> None:
    x = 5 + torch.randn(3, 4, 8)
    normed = RMSNorm(8, 1e-6)(x)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(3, 4))
    assert normed.mean() > 0.5
    heads = MultiHeadNorm(32, 1e-6)(x).unflatten(-1, (4, 8))
    torch.testing.assert_close(heads.mean(-1), torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(heads.square().mean(-1), torch.ones(3, 4))
    assert RMSNorm(8, 1e-6)(x.bfloat16()).dtype == torch.float32


def test_logits_of_the_mlstm_are_capped() -> None:
    model = lively(MLSTM)
    torch.nn.init.normal_(model.lm_head.weight, std=1e3)
    logits = model(tokens(1, 8))
    assert logits.abs().max() <= 30
    assert logits.abs().max() > 29


def test_gates_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = build_model(MLSTM)
    layer, seen = model.backbone.blocks[0].mlstm_layer, {}
    cell = layer.cell

    def spy(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, **options: Any) -> Tensor:
        seen.update(q=q.dtype, i=i.dtype, f=f.dtype)
        return cell(q, k, v, i, f, **options)

    layer.cell = spy
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(model(tokens(2, 16)), tokens(2, 16))
    loss.backward()
    assert seen == {"q": torch.bfloat16, "i": torch.float32, "f": torch.float32}
    assert loss.dtype == torch.float32
    exact = next_token_loss(model(tokens(2, 16)), tokens(2, 16))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


@BOTH
def test_a_new_model_knows_nothing(config: ModelConfig) -> None:
    torch.manual_seed(0)
    loss = next_token_loss(build_model(config)(tokens(8, 40)), tokens(8, 40, seed=2))
    spread = 2 / 5  # variance of the logits: a normed vector times weights of variance 2 / (5 d)
    assert loss.item() == pytest.approx(math.log(50) + spread / 2, abs=0.1)


def test_loss_is_in_nats_a_token() -> None:
    logits = torch.randn(2, 3, 5)
    targets = torch.randint(5, (2, 3))
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(next_token_loss(logits, targets), expected)
    assert next_token_loss(logits.bfloat16(), targets).dtype == torch.float32


@BOTH
def test_the_seed_is_the_model(config: ModelConfig) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(config).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@BOTH
def test_initial_scales(config: ModelConfig) -> None:
    """KERNELS.md 2.1: sqrt(2 / (5 d)); 2 / (blocks sqrt(fan in)) for what writes to the residual stream."""
    torch.manual_seed(0)
    wide = {"vocab_size": 500, "d_model": 96, "num_blocks": 3, "num_heads": 4}
    model = build_model(mlstm_config(**wide) if config.arch == "mlstm" else transformer_config(**wide))
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or ("gate_preact" in name and "ogate" not in name):
            continue
        expected = math.sqrt(2 / (5 * 96))
        if "out_proj" in name or "proj_down" in name:
            expected = 2 / (3 * math.sqrt(weight.shape[1]))
        assert weight.std().item() == pytest.approx(expected, rel=0.06), name
        assert abs(weight.mean().item()) < 0.05 * expected, name


def test_initial_gates_and_norms() -> None:
    model = build_model(MLSTM)
    weights = dict(model.named_parameters())
    for j in range(2):
        layer = f"backbone.blocks.{j}.mlstm_layer"
        assert not weights[f"{layer}.igate_preact.weight"].any()
        assert not weights[f"{layer}.fgate_preact.weight"].any()
        assert weights[f"{layer}.igate_preact.bias"].tolist() == [-10.0] * 3
        assert weights[f"{layer}.fgate_preact.bias"].tolist() == [3.0, 4.5, 6.0]
    assert all((w == 1).all() for name, w in weights.items() if "norm" in name)


def published_names(config: MLSTMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an xlstm_large checkpoint (KERNELS.md 2.1)."""
    d, heads, ffn = config.d_model, config.num_heads, config.ffn_dim
    qk = heads * config.head_dim_qk
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.vocab_size, d),
        "backbone.out_norm.weight": (d,),
        "lm_head.weight": (config.vocab_size, d),
    }
    block: dict[str, tuple[int, ...]] = {
        "norm_mlstm.weight": (d,),
        "norm_ffn.weight": (d,),
        "mlstm_layer.q.weight": (qk, d),
        "mlstm_layer.k.weight": (qk, d),
        "mlstm_layer.v.weight": (d, d),
        "mlstm_layer.ogate_preact.weight": (d, d),
        "mlstm_layer.out_proj.weight": (d, d),
        "mlstm_layer.igate_preact.weight": (heads, d),
        "mlstm_layer.igate_preact.bias": (heads,),
        "mlstm_layer.fgate_preact.weight": (heads, d),
        "mlstm_layer.fgate_preact.bias": (heads,),
        "mlstm_layer.multihead_norm.weight": (d,),
        "ffn.proj_up_gate.weight": (ffn, d),
        "ffn.proj_up.weight": (ffn, d),
        "ffn.proj_down.weight": (d, ffn),
    }
    for j in range(config.num_blocks):
        shapes |= {f"backbone.blocks.{j}.{name}": shape for name, shape in block.items()}
    return shapes


def test_weights_have_the_published_names() -> None:
    ours = {name: tuple(weight.shape) for name, weight in build_model(MLSTM).state_dict().items()}
    assert ours == published_names(MLSTM)


@BOTH
def test_weights_survive_a_round_trip(config: ModelConfig, tmp_path: Any) -> None:
    source, target = lively(config, seed=0), lively(config, seed=1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    target.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(source(tokens(1, 9)), target(tokens(1, 9)))
