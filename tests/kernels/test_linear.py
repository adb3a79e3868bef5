"""The decode step's maps against plain PyTorch in float64, and against the models' layers in bfloat16."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear import (
    add_norm,
    read_out,
    rotate_pairs,
    several_triton,
    skinny_linear,
    skinny_triton,
    swiglu,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "triton"]
SHAPES = [
    (1, 16, 8), (1, 96, 40), (2, 100, 33), (3, 64, 130), (4, 8, 20), (5, 100, 33), (11, 96, 40), (18, 64, 24),
]  # fmt: skip
"""B, K, N: tails of all three. From 3 vectors on by tensor cores, 4, 8 or 16 at a time."""
EPS = 1e-6
FITTING = (torch.ones(2, 16), None, torch.ones(16), EPS)
WIDEST, MANY_TOKENS = 65_535, 65_600
"""CUDA's limit to the second and third dimension of a grid, and more tokens than that."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).to(DEVICE)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    error = (actual.double() - wanted.double()).norm() / wanted.double().norm()
    assert error < tolerance, f"relative error {float(error):.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("norm", "glu", "residual"), [*itertools.product([False, True], [False, True], [False, True])]
)
def test_a_map_is_what_stands_around_it_in_float64(
    backend: str, shape: tuple[int, int, int], norm: bool, glu: bool, residual: bool
) -> None:
    B, K, N = shape
    x, weight = normal(B, K), normal(N * (1 + glu), K, seed=1) / K**0.5
    gain, kept = normal(K, seed=2) + 2, normal(B, N, seed=3)
    wanted = F.linear(rms_norm(x, gain) if norm else x, weight)
    if glu:
        wanted = F.silu(wanted[:, :N]) * wanted[:, N:]
    if residual:
        wanted = wanted + kept
    found, gates = skinny_linear(
        x.float(),
        weight.float(),
        norm_weight=gain.float() if norm else None,
        glu=glu,
        residual=kept.float() if residual else None,
        backend=backend,
    )
    assert gates is None
    assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [2, 5])
def test_gates_come_from_the_same_normed_vector(backend: str, bias: bool, batch: int) -> None:
    x, weight, gain = normal(batch, 48), normal(20, 48, seed=1), normal(48, seed=2) + 2
    gate_weight, gate_bias = normal(6, 48, seed=3), normal(6, seed=4)
    found, gates = skinny_linear(
        x.float(),
        weight.float(),
        norm_weight=gain.float(),
        gate_weight=gate_weight.float(),
        gate_bias=gate_bias.float() if bias else None,
        backend=backend,
    )
    normed = rms_norm(x, gain)
    assert gates is not None
    assert gates.dtype == torch.float32
    assert_close(found, F.linear(normed, weight))
    assert_close(gates, F.linear(normed, gate_weight, gate_bias if bias else None))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("glu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_several_in_pieces(
    monkeypatch: pytest.MonkeyPatch, norm: bool, glu: bool, dtype: torch.dtype
) -> None:
    """Rows longer than a program holds, in two and three; a norm of such is a kernel of its own."""
    monkeypatch.setattr(several_triton, "CHUNK_BYTES", 256)
    monkeypatch.setattr(several_triton, "WARP_BYTES", 128)
    for width in (100, 150) if dtype == torch.float32 else (200, 300):
        x, weight = normal(5, width, dtype=dtype), normal(40, width, seed=1, dtype=dtype) / 10
        options = {
            "norm_weight": normal(width, seed=2, dtype=dtype) + 2 if norm else None,
            "gate_weight": normal(6, width, seed=3, dtype=torch.float32) / 10,
            "gate_bias": normal(6, seed=4, dtype=torch.float32),
            "glu": glu,
            "residual": normal(5, 20 if glu else 40, seed=5, dtype=dtype),
        }
        found = skinny_linear(x, weight, backend="triton", **options)
        wanted = skinny_linear(x, weight, backend="reference", **options)
        rounded = 2**-7 if DEVICE == "cuda" else 4e-2
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, 1e-5 if dtype == torch.float32 else rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [3, 8, 14])
def test_a_vectors_result_depends_on_no_other(dtype: torch.dtype, batch: int) -> None:
    """Bit for bit: in another place, and beside others."""
    x, weight = normal(batch, 96, dtype=dtype), normal(80, 96, seed=1, dtype=dtype) / 10
    options = {
        "norm_weight": normal(96, seed=2, dtype=dtype) + 2,
        "gate_weight": normal(6, 96, seed=3, dtype=torch.float32),
        "glu": True,
        "backend": "triton",
    }
    found = skinny_linear(x, weight, **options)
    turned = skinny_linear(x.flip(0), weight, **options)
    other = normal(batch, 96, seed=6, dtype=dtype)
    other[1] = x[1]
    beside = skinny_linear(other, weight, **options)
    for one, two, three in zip(found, turned, beside, strict=True):
        assert torch.equal(one.flip(0), two)
        assert torch.equal(one[1], three[1])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("glu", [False, True])
def test_bfloat16_rounds_where_the_layers_round(glu: bool, batch: int) -> None:
    x, weight = normal(batch, 512, dtype=torch.bfloat16), normal(64, 512, seed=1, dtype=torch.bfloat16) / 16
    gain = normal(512, seed=2, dtype=torch.bfloat16) + 2
    options = {
        "norm_weight": gain,
        "glu": glu,
        "residual": normal(batch, 32 if glu else 64, dtype=torch.bfloat16),
    }
    found, _ = skinny_linear(x, weight, backend="triton", **options)
    wanted, _ = skinny_linear(x, weight, backend="reference", **options)
    assert found.dtype == torch.bfloat16
    # The interpreter cuts bfloat16 off where a GPU rounds.
    assert_close(found, wanted, 2**-7 if DEVICE == "cuda" else 4e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("several", [1024, 4])
def test_add_norm(monkeypatch: pytest.MonkeyPatch, backend: str, change: bool, several: int) -> None:
    """A row a program, and several rows, the last program of which has fewer."""
    rows = 19
    monkeypatch.setattr(skinny_triton, "SEVERAL", several)
    x, delta, gain = normal(rows, 100), normal(rows, 100, seed=1), normal(100, seed=2) + 2
    weight, bias = normal(5, 100, seed=3), normal(5, seed=4)
    total, normed, gates = add_norm(
        x.float(),
        delta.float() if change else None,
        gain.float(),
        EPS,
        gate_weight=weight.float(),
        gate_bias=bias.float(),
        backend=backend,
    )
    wanted = x + delta if change else x
    assert gates is not None
    assert_close(total, wanted)
    assert_close(normed, rms_norm(wanted, gain))
    assert_close(gates, F.linear(rms_norm(wanted, gain), weight, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_swiglu(backend: str) -> None:
    x = normal(3, 2 * 70)
    assert_close(swiglu(x.float(), backend), F.silu(x[:, :70]) * x[:, 70:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotation_takes_a_slice_of_a_wider_tensor(backend: str) -> None:
    wide, angle = normal(2, 3 * 4 * 24), normal(2, 12, seed=1)
    x = wide[:, 96:192].unflatten(-1, (4, 24))
    first, second = x.chunk(2, -1)
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    wanted = torch.cat([first * c - second * s, second * c + first * s], -1)
    part = wide.float()[:, 96:192].unflatten(-1, (4, 24))
    found = rotate_pairs(part, angle.cos().float(), angle.sin().float(), backend)
    assert found.is_contiguous()
    assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("width", [61, 4096, 5001])
def test_read_out(backend: str, cap: float | None, width: int) -> None:
    """The likeliest token, the first of equals, wherever it stands."""
    x = normal(4, width)
    for row, places in enumerate([(0, 5), (width - 1,), (width // 2, width - 2), (17, 18, 19)]):
        x[row, list(places)] = 9.0
    logits = torch.empty(4, width, device=DEVICE)
    tokens = torch.empty(4, dtype=torch.int64, device=DEVICE)
    arrivals = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    read_out(x.float(), cap, logits, tokens, arrivals, backend)
    assert not arrivals.any()
    assert_close(logits, x if cap is None else cap * torch.tanh(x / cap))
    assert tokens.tolist() == [0, width - 1, width // 2, 17]


class Launches:
    """In the place of a kernel: notes the grid, runs nothing."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grids.append(grid)
        return lambda *_, **__: None


@pytest.mark.parametrize(
    ("kernel", "launch"),
    [
        ("_swiglu_kernel", lambda x: skinny_triton.launch_swiglu(x)),
        ("_add_norm_kernel", lambda x: skinny_triton.launch_add_norm(x, None, x[0], EPS, None, None)),
        ("_rotate_kernel", lambda x: skinny_triton.launch_rotate(x.view(len(x), 2, -1), x, x)),
        ("_read_out_kernel", lambda x: skinny_triton.launch_read_out(x, None, x, x, x)),
    ],
)
def test_more_tokens_than_a_grid_is_wide(
    monkeypatch: pytest.MonkeyPatch, kernel: str, launch: Callable[[Tensor], object]
) -> None:
    """CUDA takes 65,535 programs along the other dimensions of a grid: tokens lie along the first."""
    launches = Launches()
    monkeypatch.setattr(skinny_triton, kernel, launches)
    launch(torch.empty(MANY_TOKENS, 64, device="meta"))
    (grid,) = launches.grids
    assert MANY_TOKENS // skinny_triton.TOKENS <= grid[0] <= MANY_TOKENS
    assert all(side <= WIDEST for side in grid[1:])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
def test_more_tokens_than_a_grid_is_wide_on_a_gpu() -> None:
    x = torch.randn(MANY_TOKENS, 64, device=DEVICE)
    gain, arrivals = torch.ones(64, device=DEVICE), torch.zeros(MANY_TOKENS, dtype=torch.int32, device=DEVICE)
    found, wanted = (
        (
            swiglu(x, backend),
            add_norm(x, x, gain, EPS, backend=backend)[1],
            rotate_pairs(x.view(-1, 2, 32), x[:, :16].cos(), x[:, :16].sin(), backend),
        )
        for backend in ("triton", "reference")
    )
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)
    logits, tokens = torch.empty_like(x), torch.empty(MANY_TOKENS, dtype=torch.int64, device=DEVICE)
    read_out(x, None, logits, tokens, arrivals)
    assert torch.equal(logits, x)
    assert torch.equal(tokens, x.argmax(-1))


def test_more_vectors_than_a_map_of_few_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        skinny_linear(torch.empty(MANY_TOKENS, 16), torch.ones(8, 16))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("weight", {"weight": torch.ones(8, 15)}),
        ("norm_weight", {"norm_weight": torch.ones(15)}),
        ("gate_weight", {"gate_weight": torch.ones(2, 15)}),
        ("gate_bias", {"gate_weight": torch.ones(2, 16), "gate_bias": torch.ones(3)}),
        ("residual", {"residual": torch.ones(1, 7)}),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name: str, options: dict[str, Tensor]) -> None:
    arguments = {"weight": torch.ones(8, 16), **options}
    with pytest.raises(ValueError, match=name):
        skinny_linear(torch.ones(1, 16), **arguments)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("change", lambda: add_norm(torch.ones(2, 16), torch.ones(1, 16), torch.ones(16), EPS)),
        ("norm_weight", lambda: add_norm(torch.ones(2, 16), None, torch.ones(15), EPS)),
        ("gate_weight", lambda: add_norm(*FITTING, gate_weight=torch.ones(2, 15))),
        ("gate_bias", lambda: add_norm(*FITTING, gate_weight=torch.ones(2, 16), gate_bias=torch.ones(1))),
        ("x has shape", lambda: swiglu(torch.ones(2, 15))),
        ("x has shape", lambda: rotate_pairs(torch.ones(2, 3, 7), torch.ones(2, 3), torch.ones(2, 3))),
        ("strides", lambda: rotate_pairs(torch.ones(2, 8, 3).mT, torch.ones(2, 4), torch.ones(2, 4))),
        ("sin", lambda: rotate_pairs(torch.ones(2, 3, 8), torch.ones(2, 4), torch.ones(1, 4))),
    ],
)
def test_a_shape_that_does_not_fit_around_a_product_is_named(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=name):
        call()
