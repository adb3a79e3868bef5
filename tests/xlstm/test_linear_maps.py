"""Linear maps with gradients of their own, and the layers that use them on a GPU, against autograd's."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.xlstm.devices import DEVICES
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.models import build_model, layers, mlstm
from xlstm.models.linear import linear_maps
from xlstm.training.blocks import make_ready
from xlstm.training.execution import PLAIN

SHAPE: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "num_blocks": 2, "num_heads": 2, "ffn_dim": 24}
CONFIGS: list[ModelConfig] = [MLSTMConfig(**SHAPE, head_dim_qk=4), TransformerConfig(**SHAPE)]


def inputs(widths: tuple[int, ...], dtype: torch.dtype, device: str, rows: int = 30) -> list[Tensor]:
    """x (rows / 3, 3, 40), weights, and the gradients of the results."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows // 3, 3, 40), *((n, 40) for n in widths), *((rows // 3, 3, n) for n in widths)]
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes]


def results(maps: Any, x: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Of `maps`: what it gives, dx and the dW."""
    count = len(tensors) // 2
    leaves = [part.detach().requires_grad_() for part in (x, *tensors[:count])]
    ys = maps(*leaves)
    dys = [dy.to(y.dtype) for dy, y in zip(tensors[count:], ys, strict=True)]
    return [*(y.detach() for y in ys), *torch.autograd.grad(ys, leaves, dys)]


def plain(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(F.linear(x, weight) for weight in weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("widths", [(8,), (8, 8, 24), (16, 8, 40, 40)])
def test_gradients_are_autograds(device: str, widths: tuple[int, ...]) -> None:
    given = inputs(widths, torch.float64, device)
    for a, b in zip(results(linear_maps, *given), results(plain, *given), strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_under_autocast_weights_have_gradients_that_were_never_rounded(device: str) -> None:
    """On a GPU; a CPU has no such product. What autocast gives is a rounding of bfloat16 away from either."""
    given = inputs((8, 16), torch.float32, device, rows=3000)
    exact = [part.bfloat16().double() for part in given]
    wanted = results(plain, *exact)
    with torch.autocast(device, torch.bfloat16):
        found, autocast = results(linear_maps, *given), results(plain, *given)
    assert [part.dtype for part in found] == [part.dtype for part in autocast]
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    assert max(errors) < 4e-3
    if device == "cuda":
        assert max(errors[-2:]) < 1e-5


def test_views_and_broadcast_gradients() -> None:
    given = inputs((8, 16), torch.float64, "cpu")
    given[0] = given[0].transpose(0, 1)
    given[3] = given[3].transpose(0, 1).contiguous().transpose(-1, -2).contiguous().transpose(-1, -2)
    given[4] = torch.tensor(0.5, dtype=torch.float64).expand(3, 10, 16)
    for a, b in zip(results(linear_maps, *given), results(plain, *given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break(autocast: bool) -> None:
    given = inputs((8, 16), torch.float32, "cpu")
    compiled = torch.compile(linear_maps, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        for a, b in zip(results(compiled, *given), results(linear_maps, *given), strict=True):
            assert torch.equal(a, b)


def test_opcheck() -> None:
    x, *rest = inputs((8, 16), torch.float32, "cpu")
    torch.library.opcheck(
        torch.ops.isoflop.linear_maps_backward.default, (rest[2:], x, rest[:2], torch.float32)
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers in training take the way of a GPU on this machine too."""
    for module in (layers, mlstm):
        monkeypatch.setattr(module, "trains_on_gpu", lambda layer, x: layer.training)


def learnt(model: nn.Module, documents: bool = False) -> list[Tensor]:
    """Loss and gradients of some tokens."""
    tokens = torch.randint(50, (3, 21), generator=torch.Generator().manual_seed(0))
    ids = torch.arange(20).div(8, rounding_mode="floor").expand(3, -1) if documents else None
    loss = model(tokens[:, :-1], targets=tokens[:, 1:], document_ids=ids)
    loss.backward()
    found = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(found) == 1 + len(list(model.parameters()))
    return found


def float64_model(config: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config).double()
    with torch.no_grad():
        for parameter in model.parameters():  # gates begin with weights of zero
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.arch)
@pytest.mark.parametrize("documents", [False, True])
def test_models_train_as_they_are_evaluated(config: ModelConfig, documents: bool) -> None:
    found = learnt(float64_model(config).train(), documents)
    for a, b in zip(found, learnt(float64_model(config).eval(), documents), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.arch)
@pytest.mark.parametrize("checkpoints", [False, True])
def test_compiled_blocks_too(config: ModelConfig, checkpoints: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated, but not made into C++."""
    whole = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr("torch.compile", whole)
    torch._dynamo.reset()
    model = float64_model(config).train()
    make_ready(model, replace(PLAIN, compile=True, checkpoint_blocks=checkpoints))
    for a, b in zip(learnt(model), learnt(float64_model(config).eval()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler of C++")
def test_compiled_maps_come_from_disk() -> None:
    """Forward and backward, with no graph made anew: as the next process of a sweep finds its blocks."""
    from torch._dynamo.utils import counters
    from torch._functorch import config
    from torch._inductor.utils import fresh_cache

    given = inputs((8, 16), torch.float32, "cpu")
    # Not by monkeypatch, which deletes what it finds to be an attribute of the module's class.
    with config.patch(autograd_cache_allow_custom_autograd_functions=False), fresh_cache():
        make_ready(build_model(CONFIGS[0]), replace(PLAIN, compile=True))
        for _ in range(2):
            torch._dynamo.reset()
            counters.clear()
            results(torch.compile(linear_maps), *given)
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
