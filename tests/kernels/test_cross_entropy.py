"""Head and loss in one against plain PyTorch in float64: gradients, chunks, dtypes, and what is held."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy import linear_cross_entropy
from kernels.cross_entropy.linear import default_chunk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPS = [None, 30.0, 2.0]
"""None, that of the models, and one that bends every logit."""


def problem(tokens: int, width: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """float64 hidden and weight, logits of some units; the first and last column are among the targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(vocabulary, width, dtype=torch.float64, generator=generator) * 2 / width**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[0], targets[-1] = 0, vocabulary - 1
    return hidden, weight, targets


def expected(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> list[Tensor]:
    """Loss, dhidden, dweight by autograd through the definition."""
    leaves = [hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    logits = leaves[0] @ leaves[1].T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    loss = F.cross_entropy(logits, targets)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


def ours(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, **options: object
) -> list[Tensor]:
    leaves = [x.detach().to(DEVICE).requires_grad_() for x in (hidden, weight)]
    loss = linear_cross_entropy(*leaves, targets.to(DEVICE), soft_cap=cap, **options)  # type: ignore[arg-type]
    return [x.cpu() for x in (loss.detach(), *torch.autograd.grad(3 * loss, leaves))]


def assert_close(actual: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    names = ("loss", "dhidden", "dweight")[: len(wanted)]
    for name, a, b in zip(names, actual, wanted, strict=True):
        error = (a.double() - b).norm() / b.norm()
        assert error <= tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_equal_to_plain_cross_entropy_in_float64(cap: float | None, chunk: int) -> None:
    inputs = problem(20, 6, 50)
    assert_close(ours(*inputs, cap, chunk_tokens=chunk), expected(*inputs, cap), 1e-14)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("vocabulary", [2, 100, 5000])
def test_float32_of_each_backend(backend: str, cap: float | None, vocabulary: int) -> None:
    """5000 columns are more than two blocks of the kernel, and no multiple of it."""
    pytest.importorskip("triton")
    hidden, weight, targets = problem(5, 8, vocabulary)
    actual = ours(hidden.float(), weight.float(), targets, cap, backend=backend, chunk_tokens=3)
    assert_close(actual, expected(hidden.float(), weight.float(), targets, cap), 2e-6)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("cap", CAPS)
def test_bfloat16_errs_by_rounding_alone(backend: str, cap: float | None) -> None:
    """Against float64 on the same rounded inputs: logits and their gradients are rounded once each."""
    pytest.importorskip("triton")
    hidden, weight, targets = problem(64, 32, 300)
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    actual = ours(hidden, weight, targets, cap, backend=backend, chunk_tokens=24)
    assert actual[0].dtype == torch.float32
    assert_close(actual[:1], expected(hidden, weight, targets, cap)[:1], 1e-3)
    assert_close(actual, expected(hidden, weight, targets, cap), 6e-3)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_large_logits_neither_overflow_nor_vanish(backend: str) -> None:
    pytest.importorskip("triton")
    hidden, weight, targets = problem(6, 4, 40)
    for cap in (None, 30.0):
        actual = ours((300 * hidden).float(), weight.float(), targets, cap, backend=backend)
        assert all(x.isfinite().all() for x in actual)
        assert_close(actual[:1], expected((300 * hidden).float(), weight.float(), targets, cap)[:1], 1e-5)


def test_autocast_gives_the_dtype_of_products_and_gradients_those_of_their_inputs() -> None:
    hidden, weight, targets = problem(32, 16, 70)
    leaves = [x.float().to(DEVICE).requires_grad_() for x in (hidden, weight)]
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_cross_entropy(*leaves, targets.to(DEVICE), soft_cap=30.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert [x.grad.dtype for x in leaves if x.grad is not None] == [torch.float32, torch.float32]
    rounded = expected(hidden.bfloat16(), weight.bfloat16(), targets, 30.0)
    actual = [loss.detach().cpu(), *(3 * x.grad.cpu() for x in leaves if x.grad is not None)]
    assert_close(actual, rounded, 6e-3)


def test_without_gradients_the_loss_is_the_same() -> None:
    inputs = problem(20, 6, 50)
    with torch.no_grad():
        loss = linear_cross_entropy(*(x.to(DEVICE) for x in inputs), soft_cap=30.0)
    assert torch.equal(loss.cpu(), ours(*inputs, 30.0)[0])


def test_gradient_of_one_input_alone() -> None:
    hidden, weight, targets = (x.to(DEVICE) for x in problem(20, 6, 50))
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, targets).backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad.cpu(), expected(hidden.cpu(), weight.cpu(), targets.cpu(), None)[2] / 3)


def test_gradcheck_and_the_rules_of_operators() -> None:
    hidden, weight, targets = problem(6, 3, 7)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, W: linear_cross_entropy(x, W, targets, soft_cap=2.0, chunk_tokens=4), leaves
    )
    arguments = (*leaves, targets, 2.0, 4, torch.float64, True, True, None)
    torch.library.opcheck(torch.ops.isoflop.linear_cross_entropy.default, arguments)


def test_never_holds_the_logits() -> None:
    """Nothing that is allocated reaches the size of the logits of all tokens; a plain head exceeds it."""
    hidden, weight, targets = (x.float() if x.is_floating_point() else x for x in problem(4096, 8, 2048))
    hidden.requires_grad_()
    logits = 4096 * 2048 * 4
    fused = peak(lambda: linear_cross_entropy(hidden, weight, targets, chunk_tokens=128, backend="reference"))
    plain = peak(lambda: F.cross_entropy(hidden @ weight.T, targets))
    assert fused < logits / 4
    assert plain > logits


def peak(loss: object) -> int:
    """Largest sum of living allocations, forward and backward, by the profiler's account of memory."""
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as prof:
        loss().backward()  # type: ignore[operator]
    total = highest = 0
    for event in prof.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    return highest


def test_chunks_fill_their_share_of_memory() -> None:
    assert default_chunk(50304, torch.bfloat16) == 5 * 1024
    assert default_chunk(256, torch.float32) == 512 * 1024
    assert default_chunk(2**22, torch.float32) == 32
    assert default_chunk(2**40, torch.float32) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": torch.zeros(3, 4)}, "must be \\(T, d\\) and \\(V, d\\)"),
        ({"targets": torch.zeros(2, dtype=torch.long)}, "targets \\(2,\\): must be \\(3,\\)"),
        ({"soft_cap": 0.0}, "soft_cap = 0.0: must be positive"),
        ({"chunk_tokens": 0}, "chunk_tokens = 0: must be at least 1"),
    ],
)
def test_misfits_are_named(change: dict[str, object], words: str) -> None:
    fitting = {"hidden": torch.zeros(3, 5), "weight": torch.zeros(7, 5), "targets": torch.zeros(3).long()}
    with pytest.raises(ValueError, match=words):
        linear_cross_entropy(**(fitting | change))  # type: ignore[arg-type]
