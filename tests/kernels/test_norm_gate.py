"""The fused norm and output gate against autograd through plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.mlstm.norm_gate import mlstm_norm_gate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "triton"]
SHAPES = [(1, 5, 2, 16), (2, 70, 3, 24), (1, 33, 1, 128), (3, 3, 2, 200), (1, 2, 1, 512), (2, 257, 4, 16)]
"""B, S, H, V: tails of tokens and of channels, and more blocks of tokens than one."""
NAMES = ["y", "dh", "do", "dweight"]


def random_inputs(shape: tuple[int, int, int, int], seed: int = 0) -> list[Tensor]:
    """float64 h with a mean that the norm must remove, o, weight and dy, on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    return [normal(*shape) * 2 + 1.5, normal(*shape) * 3, normal(shape[2] * shape[3]) + 1, normal(*shape)]


def expected(h: Tensor, o: Tensor, weight: Tensor, dy: Tensor, eps: float = 1e-6) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (h, o, weight)]
    y = F.layer_norm(leaves[0], h.shape[-1:], eps=eps) * leaves[2].view(h.shape[-2:]) * leaves[1].sigmoid()
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def ours(inputs: list[Tensor], backend: str, eps: float = 1e-6) -> list[Tensor]:
    leaves = [x.to(DEVICE).detach().requires_grad_() for x in inputs[:3]]
    y = mlstm_norm_gate(*leaves, eps, backend)
    return [y.detach(), *torch.autograd.grad(y, leaves, inputs[3].to(DEVICE))]


def assert_all_close(actual: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(NAMES, actual, wanted, strict=True):
        error = (a.double().cpu() - b).norm() / b.norm()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_matches_autograd(backend: str, shape: tuple[int, int, int, int], eps: float) -> None:
    inputs = random_inputs(shape)
    assert_all_close(ours([x.float() for x in inputs], backend, eps), expected(*inputs, eps), 1e-5)


@pytest.mark.parametrize("programs", [1, 6])
def test_a_program_of_the_backward_pass_walks_over_many_blocks(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full ones, a part of one, and for some programs one less than for others."""
    from kernels.mlstm import norm_gate_triton

    monkeypatch.setattr(norm_gate_triton, "PROGRAMS", programs)
    inputs = random_inputs((1, 77, 2, 100))
    assert norm_gate_triton.block_rows(100, norm_gate_triton.WALKED) == 8
    assert_all_close(ours([x.float() for x in inputs], "triton"), expected(*inputs), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_stays_within_its_rounding(backend: str) -> None:
    """Triton's interpreter cuts what a GPU rounds, hence 1e-2 and not half of it."""
    inputs = [x.bfloat16() for x in random_inputs((2, 40, 2, 96))]
    inputs[2] = inputs[2].float()  # as under autocast: the parameter keeps its precision
    results = ours(inputs, backend)
    assert [x.dtype for x in results] == [torch.bfloat16] * 3 + [torch.float32]
    assert_all_close(results, expected(*(x.double() for x in inputs)), 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_mean_does_not_hurt(backend: str) -> None:
    """The variance is that of the centred values: E[x^2] - E[x]^2 would lose all bits here."""
    inputs = random_inputs((1, 4, 2, 64))
    inputs[0] += 3000.0
    inputs = [x.float().double() for x in inputs]
    assert_all_close(ours([x.float() for x in inputs], backend), expected(*inputs), 2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_fused_projection_and_broadcast_gradients(backend: str) -> None:
    batch, length, heads, width = (2, 9, 2, 40)
    inputs = [x.float() for x in random_inputs((batch, length, heads, width))]
    fused = torch.full((batch, length, 3 * heads * width + 8), float("nan"))
    view = fused[..., 8 : 8 + heads * width].view(batch, length, heads, width)
    inputs[1] = view.copy_(inputs[1])
    inputs[3] = torch.tensor(0.7).expand(batch, length, heads, width)
    leaves = [inputs[0].to(DEVICE), fused.to(DEVICE), inputs[2].to(DEVICE)]
    gate = leaves[1][..., 8 : 8 + heads * width].view(batch, length, heads, width).requires_grad_()
    h, weight = leaves[0].requires_grad_(), leaves[2].requires_grad_()
    y = mlstm_norm_gate(h, gate, weight, backend=backend)
    grads = torch.autograd.grad(y, [h, gate, weight], inputs[3].to(DEVICE))
    assert_all_close([y.detach(), *grads], expected(*(x.double() for x in inputs)), 1e-5)


def test_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in random_inputs((1, 3, 2, 6))[:3]]
    torch.autograd.gradcheck(lambda *x: mlstm_norm_gate(*x, 1e-3, "reference"), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    h, o, weight, dy = (x.float().to(DEVICE) for x in random_inputs((1, 3, 2, 16)))
    leaves = [x.detach().requires_grad_() for x in (h, o, weight)]
    torch.library.opcheck(torch.ops.isoflop.mlstm_norm_gate.default, (*leaves, 1e-6, backend))
    torch.library.opcheck(
        torch.ops.isoflop.mlstm_norm_gate_backward.default, (dy, h, o, weight, 1e-6, backend)
    )


def test_compiles_without_a_graph_break() -> None:
    inputs = [x.float() for x in random_inputs((1, 6, 2, 16))]
    wanted = ours(inputs, "reference")
    leaves = [x.to(DEVICE).requires_grad_() for x in inputs[:3]]
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    y = torch.compile(mlstm_norm_gate, fullgraph=True, backend=backend)(*leaves)
    grads = torch.autograd.grad(y, leaves, inputs[3].to(DEVICE))
    torch.testing.assert_close([y.detach(), *grads], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", [(2, 2048, 16, 256), (1, 4096, 8, 512), (4, 1000, 4, 128), (1, 777, 5, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_shapes_on_the_gpu(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in random_inputs(shape)]
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    results = ours(inputs, "triton")
    assert_all_close(results, expected(*(x.double() for x in inputs)), tolerance)
    for _ in range(3):  # a value that is read too early or too late would not be the same each time
        assert all(torch.equal(a, b) for a, b in zip(results, ours(inputs, "triton"), strict=True))


@pytest.mark.parametrize(
    ("o", "weight", "message"), [((1, 2, 2, 8), 16, "o has shape"), ((1, 3, 2, 8), 8, "weight has 8")]
)
def test_bad_shapes_are_named(o: tuple[int, ...], weight: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlstm_norm_gate(torch.zeros(1, 3, 2, 8), torch.zeros(o), torch.zeros(weight))
