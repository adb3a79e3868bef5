"""Packed prefill and step against the layers of the models, on one state each."""

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm.accounting import mlstm_config, transformer_config
from xlstm.config import LSTMConfig, ModelConfig
from xlstm.generation import Session, random_model
from xlstm.generation import packed as packed_module
from xlstm.generation.packed import PackedModel
from xlstm.generation.packed_blocks import pack
from xlstm.models import LanguageModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 61


def config_of(arch: str) -> ModelConfig:
    shape: dict[str, Any] = {"d_model": 48, "num_blocks": 2, "vocab_size": VOCABULARY, "ffn_multiple_of": 8}
    if arch == "mlstm":
        return mlstm_config(num_heads=2, **shape)
    return transformer_config(num_heads=3, **shape)


def begun(model: LanguageModel, batch_size: int, prompt: Tensor) -> Session:
    session = Session(model, batch_size, 32, cuda_graph=False)
    session.prefill(prompt)
    return session


@pytest.mark.parametrize("arch", ["mlstm", "transformer"])
@pytest.mark.parametrize(("batch_size", "few"), [(1, 1), (2, 2), (5, 2), (3, 8), (6, 8), (11, 16)])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_logits_and_state_are_those_of_the_layers(
    monkeypatch: pytest.MonkeyPatch, arch: str, batch_size: int, few: int, backend: str
) -> None:
    """A step of up to `few` sequences is a chain of maps, one of more has matrix products."""
    monkeypatch.setattr(packed_module, "most_chained", lambda d_model: few)
    if backend != "reference" and DEVICE == "cpu":
        pytest.importorskip("triton")
    model = random_model(config_of(arch), dtype=torch.float32, device=DEVICE)
    prompt = torch.randint(VOCABULARY, (batch_size, 9), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    layers = begun(model, batch_size, prompt)
    packed = begun(model, batch_size, prompt)
    ours = PackedModel(model, batch_size, backend)
    fed = torch.randint(VOCABULARY, (3, batch_size), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    found = torch.empty(batch_size, VOCABULARY, device=DEVICE)
    with torch.inference_mode():
        for tokens in fed:
            wanted = model.step(tokens, layers.state)
            ours.step(tokens, packed.state, found)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            assert torch.equal(tokens, found.argmax(-1))
    for one, other in zip(layers.state.tensors(), packed.state.tensors(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["mlstm", "transformer"])
@pytest.mark.parametrize("lengths", [(9,), (7, 7, 7), (3, 20, 1)])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_prefill_leaves_what_the_layers_leave(arch: str, lengths: tuple[int, ...], backend: str) -> None:
    """Prompts in one piece and in several, of one length and ragged; read on from there."""
    model = random_model(config_of(arch), dtype=torch.float32, device=DEVICE)
    generator = torch.Generator().manual_seed(3)
    layers, packed = (
        Session(model, len(lengths), 64, cuda_graph=False, prefill_tokens=8 * len(lengths)) for _ in range(2)
    )
    layers._packed, packed._packed = None, PackedModel(model, len(lengths), backend)
    for _ in range(2):
        prompts = [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]
        wanted, found = layers.prefill(prompts), packed.prefill(prompts)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        for one, other in zip(layers.state.tensors(), packed.state.tensors(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="has no packed form"):
        PackedModel(random_model(LSTMConfig(d_model=16, num_blocks=1, vocab_size=VOCABULARY)), 1)


def test_packing_leaves_the_model_as_it_was_and_holds_nothing_twice() -> None:
    model = random_model(config_of("mlstm"), dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(VOCABULARY, (1, 7))
    logits = model(tokens)
    PackedModel(model, 1)
    layer = model.backbone.blocks[0].mlstm_layer
    assert layer.q.weight.untyped_storage().data_ptr() == layer.v.weight.untyped_storage().data_ptr()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model(tokens), logits)


def test_packing_twice_is_packing_once() -> None:
    layers = [torch.nn.Linear(4, n, bias=False) for n in (3, 5)]
    first = pack(layers)
    assert pack(layers).data_ptr() == first.data_ptr()
    assert torch.equal(first[3:], layers[1].weight)
