"""SwiGLU with its own gradients against autograd through plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.swiglu import swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "triton"]
SHAPES = [(3, 2), (2, 5, 74), (1, 2, 4, 64), (3, 2 * 1500), (7, 2 * 1024), (0, 8), (2, 0)]
"""Blocks that are full and not, more of them than one, and nothing."""


def random_inputs(shape: tuple[int, ...], scale: float = 3.0) -> list[Tensor]:
    """float64 x and dy, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
    return [x, torch.randn(*shape[:-1], shape[-1] // 2, dtype=torch.float64, generator=generator)]


def expected(x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    gate, up = x.chunk(2, -1)
    y = F.silu(gate) * up
    return [y.detach(), *torch.autograd.grad(y, x, dy)]


def ours(x: Tensor, dy: Tensor, backend: str) -> list[Tensor]:
    x = x.to(DEVICE).detach().requires_grad_()
    y = swiglu(x, backend)
    return [y.detach(), *torch.autograd.grad(y, x, dy.to(DEVICE))]


def assert_all_close(actual: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("y", "dx"), actual, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.double().cpu() - b).norm() <= tolerance * b.norm(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_autograd(backend: str, shape: tuple[int, ...]) -> None:
    inputs = random_inputs(shape)
    assert_all_close(ours(*(x.float() for x in inputs), backend), expected(*inputs), 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_rounded_once(backend: str) -> None:
    """By half an ulp of bfloat16, 2^-8; Triton's interpreter cuts what a GPU rounds, by up to a whole one."""
    ulps = 1.0 if backend == "triton" and DEVICE == "cpu" else 0.5
    inputs = [x.bfloat16() for x in random_inputs((6, 300))]
    results = ours(*inputs, backend)
    assert [x.dtype for x in results] == [torch.bfloat16] * 2
    for a, b in zip(results, expected(*(x.double() for x in inputs)), strict=True):
        assert ((a.double().cpu() - b).abs() <= 1.001 * ulps * 2**-7 * b.abs()).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_zero_nothing_overflows(backend: str) -> None:
    inputs = [x.float().double() for x in random_inputs((4, 64), scale=200.0)]
    results = ours(*(x.float() for x in inputs), backend)
    assert all(x.isfinite().all() for x in results)
    assert_all_close(results, expected(*inputs), 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_broadcast_gradients(backend: str) -> None:
    wide = random_inputs((2, 5, 3 * 40))[0].float()
    x, dy = wide[..., 8:88], torch.tensor(0.7).expand(2, 5, 40)
    assert_all_close(ours(x, dy, backend), expected(x.double(), dy.double()), 5e-6)
    x = wide.transpose(0, 2)[:80].transpose(0, 2)
    assert_all_close(ours(x, dy, backend), expected(x.double(), dy.double()), 5e-6)


def test_gradcheck() -> None:
    x = random_inputs((3, 10))[0].requires_grad_()
    torch.autograd.gradcheck(swiglu, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    x, dy = (x.float().to(DEVICE) for x in random_inputs((2, 3, 20)))
    torch.library.opcheck(torch.ops.isoflop.swiglu.default, (x.requires_grad_(), backend))
    torch.library.opcheck(torch.ops.isoflop.swiglu_backward.default, (dy, x.detach(), backend))


def test_compiles_without_a_graph_break() -> None:
    x, dy = (x.float().to(DEVICE) for x in random_inputs((6, 32)))
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    x.requires_grad_()
    y = torch.compile(swiglu, fullgraph=True, backend=backend)(x)
    found = [y.detach(), *torch.autograd.grad(y, x, dy)]
    torch.testing.assert_close(found, ours(x, dy, "reference"), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", [(4, 2048, 2 * 2112), (16384, 2 * 5504), (1000, 2 * 2752)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_shapes_on_the_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape, generator=generator, device="cuda").to(dtype)
    dy = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator, device="cuda").to(dtype)
    wanted = [x.cpu() for x in expected(x.double(), dy.double())]
    assert_all_close(ours(x, dy, "triton"), wanted, 5e-6 if dtype == torch.float32 else 3e-3)


def test_an_odd_width_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        swiglu(torch.zeros(2, 5))
