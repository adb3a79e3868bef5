"""The decode step against the float64 oracle: values, the state in place, and what surrounds the cell."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.mlstm.decode import mlstm_step
from kernels.mlstm.reference import State, recurrent_step

ORACLE = Path(__file__).parents[2].parent / "shared" / "oracle" / "xlstm_fp64.py"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "triton"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SHAPES = [(1, 2, 16, 16), (2, 3, 20, 24), (3, 1, 64, 128), (1, 2, 96, 200), (1, 1, 320, 48), (2, 1, 17, 512)]
"""B, H, K, V: powers of two and not, equal and not, several slices of V with a tail."""


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    if not ORACLE.exists():
        pytest.skip("the float64 oracle is not beside this checkout")
    spec = importlib.util.spec_from_file_location("xlstm_fp64", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_step(
    shape: tuple[int, int, int, int], *, i: float = 0.0, f: float = 3.0, seed: int = 0
) -> tuple[list[Tensor], State]:
    """float64 q, k, v, i, f and a state in use, on the CPU."""
    batch, heads, width, value_width = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    inputs = [normal(batch, heads, size) for size in (width, width, value_width)]
    inputs += [normal(batch, heads) * 2 + bias for bias in (i, f)]
    return inputs, (normal(batch, heads, *shape[2:]), normal(batch, heads, width), normal(batch, heads))


def to_device(inputs: list[Tensor], state: State, dtype: torch.dtype, state_dtype: torch.dtype) -> Any:
    """q, k, v in `dtype`, C in `state_dtype`, the rest in float32: copies, on the device."""
    moved = [x.to(DEVICE, dtype) for x in inputs[:3]] + [x.to(DEVICE, torch.float32) for x in inputs[3:]]
    C, n, m = state
    return moved, (C.to(DEVICE, state_dtype), n.to(DEVICE, torch.float32), m.to(DEVICE, torch.float32))


def as_double(tensors: Any) -> list[Tensor]:
    return [x.double().cpu() for x in tensors]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual.double().cpu() - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.1e}"


def expected_step(
    oracle: ModuleType, inputs: list[Tensor], state: State, cap: float | None, gate: str
) -> tuple[Tensor, State]:
    q, k, v, i, f = inputs
    if cap is not None:
        i, f = cap * torch.tanh(i / cap), cap * torch.tanh(f / cap)
    sequence = [x[:, :, None] for x in (q, k, v, i, f)]
    h, state = oracle.mlstm_recurrent(*sequence, state=state, kind={"exp": "exp", "sigmoid": "sig"}[gate])
    return h[:, :, 0], state


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [(0.0, 3.0), (-10.0, 6.0), (4.0, -10.0)])
def test_matches_the_oracle(
    oracle: ModuleType, backend: str, shape: tuple[int, int, int, int], bias: tuple[float, float]
) -> None:
    inputs, state = random_step(shape, i=bias[0], f=bias[1])
    h, new = expected_step(oracle, inputs, state, None, "exp")
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    assert_close(mlstm_step(*moved, ours, backend=backend), h, 1e-5)
    for part, expected in zip(ours, new, strict=True):
        assert_close(part, expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", ["exp", "sigmoid"])
@pytest.mark.parametrize("cap", [None, 15.0, 2.0])
@pytest.mark.parametrize("surroundings", ["none", "norm", "gate", "both"])
def test_fused_surroundings(
    oracle: ModuleType, backend: str, gate: str, cap: float | None, surroundings: str
) -> None:
    shape = batch, heads, _, value_width = (2, 3, 20, 40)
    inputs, state = random_step(shape, seed=3)
    h, new = expected_step(oracle, inputs, state, cap, gate)
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    options: dict[str, Tensor] = {}
    if surroundings in ("norm", "both"):
        weight = torch.linspace(0.5, 2.0, heads * value_width, dtype=torch.float64)
        h = F.layer_norm(h, (value_width,), eps=1e-6) * weight.view(heads, value_width)
        options["norm_weight"] = weight.float().to(DEVICE)
    if surroundings in ("gate", "both"):
        o = torch.randn(
            batch, heads, value_width, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        h = h * o.sigmoid()
        options["ogate"] = o.float().to(DEVICE)
    out = mlstm_step(*moved, ours, gate_soft_cap=cap, input_gate=gate, backend=backend, **options)  # type: ignore[arg-type]
    assert_close(out, h, 1e-5)
    assert_close(ours[0], new[0], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_keep_the_decay(oracle: ModuleType, backend: str) -> None:
    """A forget gate of 6 keeps 0.781 after a hundred steps; one rounded to bfloat16 would keep 0.676."""
    shape = (1, 1, 16, 16)
    inputs, state = random_step(shape)
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    moved[3] = torch.full_like(moved[3], -40.0)
    moved[4] = torch.full_like(moved[4], 6.0)
    before = ours[0].double().cpu() * ours[2].double().cpu().exp()[..., None, None]
    for _ in range(100):
        mlstm_step(*moved, ours, backend=backend)
    after = ours[0].double().cpu() * ours[2].double().cpu().exp()[..., None, None]
    decay = F.logsigmoid(torch.tensor(6.0, dtype=torch.float64)).mul(100).exp()
    assert_close(after, before * decay, 1e-4)


@pytest.mark.parametrize("gate", [-100.0, -88.0, -20.0, 0.0, 5.0, 20.0, 88.0])
def test_extreme_gates_are_exact(oracle: ModuleType, gate: float) -> None:
    inputs, state = random_step((1, 2, 16, 16))
    inputs[4] = torch.full_like(inputs[4], gate)
    h, new = expected_step(oracle, inputs, state, None, "exp")
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    assert_close(mlstm_step(*moved, ours, backend="triton"), h, 1e-5)
    assert_close(ours[2], new[2], 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_half_precision_stays_within_its_rounding(
    oracle: ModuleType, backend: str, state_dtype: torch.dtype
) -> None:
    inputs, state = random_step((2, 2, 64, 96), seed=5)
    moved, ours = to_device(inputs, state, torch.bfloat16, state_dtype)
    h, new = expected_step(oracle, as_double(moved), tuple(as_double(ours)), None, "exp")  # type: ignore[arg-type]
    out = mlstm_step(*moved, ours, backend=backend)
    assert out.dtype == torch.bfloat16
    assert_close(out, h, 4e-3)
    assert ours[0].dtype == state_dtype
    assert_close(ours[0], new[0], 4e-3 if state_dtype == torch.bfloat16 else 1e-5)
    assert_close(ours[1], new[1], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_of_a_fused_projection(oracle: ModuleType, backend: str) -> None:
    """Inputs are views with their own strides; nothing outside them is read."""
    batch, heads, width, value_width = (3, 2, 20, 24)
    inputs, state = random_step((batch, heads, width, value_width))
    h, _ = expected_step(oracle, inputs, state, None, "exp")
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    row = torch.full((batch, heads * (2 * width + value_width + 2)), float("nan"), device=DEVICE)
    sizes = [heads * width, heads * width, heads * value_width, heads, heads]
    views = [part.view(batch, heads, -1) for part in row.split(sizes, -1)]
    for view, value in zip(views, moved, strict=True):
        view.copy_(value.view(view.shape))
    views[3:] = [view.squeeze(-1) for view in views[3:]]
    assert_close(mlstm_step(*views, ours, backend=backend), h, 1e-5)  # type: ignore[arg-type]


def test_nothing_outside_the_state_is_written() -> None:
    batch, heads, width, value_width = (2, 2, 20, 40)
    inputs, state = random_step((batch, heads, width, value_width))
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    guarded = [torch.full((part.numel() + 128,), -7.0, device=DEVICE) for part in ours]
    views = [buffer[64:-64].view(part.shape).copy_(part) for buffer, part in zip(guarded, ours, strict=True)]
    mlstm_step(*moved, tuple(views), backend="triton")  # type: ignore[arg-type]
    mlstm_step(*moved, ours, backend="reference")
    for buffer, part in zip(guarded, ours, strict=True):
        assert (buffer[:64] == -7).all()
        assert (buffer[-64:] == -7).all()
        torch.testing.assert_close(buffer[64:-64].view(part.shape), part, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_link_in_a_chain_leaves_its_counts_at_zero(oracle: ModuleType, norm: bool, backend: str) -> None:
    """Slices of V that several programs own, two steps: the counts serve the second as they are."""
    inputs, state = random_step((1, 3, 20, 100))
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    arrivals = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    weight = torch.ones(300, device=DEVICE) if norm else None
    options: dict[str, Any] = {"chained": True, "backend": backend, "norm_weight": weight}
    for _ in range(2):
        h, state = expected_step(oracle, inputs, state, None, "exp")
        h = F.layer_norm(h, (100,), eps=1e-6) if norm else h
        moved[0].mul_(1.0)  # no dependent launch: a chain begins
        assert_close(mlstm_step(*moved, ours, arrivals=arrivals, **options), h, 1e-5)
        assert not arrivals.any()
        for part, expected in zip(ours, state, strict=True):
            assert_close(part, expected, 1e-5)
    with pytest.raises(ValueError, match=r"arrivals is torch\.int32 \(2,\): must be int32 \(3,\)"):
        mlstm_step(*moved, ours, arrivals=arrivals[:2], **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("counts", [None, 2])
def test_opcheck(counts: int | None, backend: str) -> None:
    inputs, state = random_step((1, 2, 16, 16))
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    weight, o = torch.ones(32, device=DEVICE), torch.zeros(1, 2, 16, device=DEVICE)
    arrivals = None if counts is None else torch.zeros(counts, dtype=torch.int32, device=DEVICE)
    torch.library.opcheck(
        torch.ops.isoflop.mlstm_step.default,
        (*moved, *ours, weight, o, 1e-6, 15.0, "exp", 1e-6, backend, arrivals, True),
    )


def test_compiles_without_a_graph_break() -> None:
    inputs, state = random_step((1, 2, 16, 16))
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    expected = tuple(part.clone() for part in ours)
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    step = torch.compile(lambda *x: mlstm_step(*x, gate_soft_cap=15.0), fullgraph=True, backend=backend)
    for _ in range(2):
        h = step(*moved, ours)
        torch.testing.assert_close(h, mlstm_step(*moved, expected, gate_soft_cap=15.0))
        torch.testing.assert_close(ours, expected)


@pytest.mark.gpu
@needs_gpu
def test_cuda_graph_replays_steps(oracle: ModuleType) -> None:
    inputs, state = random_step((2, 2, 64, 128))
    moved, ours = to_device(inputs, state, torch.float32, torch.float32)
    weight = torch.ones(256, device=DEVICE)
    mlstm_step(*moved, tuple(part.clone() for part in ours), norm_weight=weight)  # type: ignore[arg-type]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = mlstm_step(*moved, ours, norm_weight=weight)
    for _ in range(5):
        graph.replay()
        expected, state = expected_step(oracle, inputs, state, None, "exp")
        assert_close(h, F.layer_norm(expected, (128,), eps=1e-6), 1e-5)
    for part, value in zip(ours, state, strict=True):
        assert_close(part, value, 1e-5)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("sizes", [(8, 256, 512), (16, 128, 256), (4, 64, 128), (4, 512, 512), (5, 16, 96)])
@pytest.mark.parametrize("norm", [False, True])
def test_every_tile_on_the_gpu(
    norm: bool, state_dtype: torch.dtype, batch: int, sizes: tuple[int, int, int]
) -> None:
    """Slice widths and warp counts of every kind, in turn, and several steps: a missed wait would show."""
    inputs, state = random_step((batch, *sizes))
    moved, ours = to_device(inputs, state, torch.float32, state_dtype)
    weight = torch.ones(sizes[0] * sizes[2], device=DEVICE) if norm else None
    arrivals = torch.zeros(batch * sizes[0], dtype=torch.int32, device=DEVICE)
    tolerance = 1e-5 if state_dtype == torch.float32 else 4e-3
    for _ in range(4):
        C, n, m = (part.double() for part in ours)
        h, (C, n, m) = recurrent_step(*(x.double() for x in moved), (C, n, m))
        h = F.layer_norm(h, (sizes[2],), eps=1e-6) if norm else h
        assert_close(mlstm_step(*moved, ours, norm_weight=weight, arrivals=arrivals), h.cpu(), 1e-5)
        assert_close(ours[0], C.cpu(), tolerance)
        assert_close(ours[1], n.cpu(), 1e-5)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
def test_chains_in_a_graph(batch: int, norm: bool) -> None:
    """Steps on several states, each launched while the one before it runs."""
    moved, states = [], []
    for seed in range(5):
        inputs, state = random_step((batch, 8, 256, 512), seed=seed)
        moved, ours = to_device(inputs, state, torch.float32, torch.float32)
        states.append(ours)
    arrivals = torch.zeros(batch * 8, dtype=torch.int32, device=DEVICE)
    weight = torch.ones(8 * 512, device=DEVICE) if norm else None

    def chain() -> list[Tensor]:
        moved[0].mul_(1.0)
        options = {"norm_weight": weight, "arrivals": arrivals, "chained": True}
        return [mlstm_step(*moved, state, **options) for state in states]

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain()
    for _ in range(3):
        before = [tuple(part.double() for part in state) for state in states]
        graph.replay()
        for h, state, old in zip(found, states, before, strict=True):
            expected, new = recurrent_step(*(x.double() for x in moved), old)  # type: ignore[arg-type]
            assert_close(h, (F.layer_norm(expected, (512,), eps=1e-6) if norm else expected).cpu(), 1e-5)
            for part, value in zip(state, new, strict=True):
                assert_close(part, value.cpu(), 1e-5)
    assert not arrivals.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 3, 9)}, "k has shape"),
        ({"v": torch.zeros(2, 4, 8)}, "v has shape"),
        ({"f": torch.zeros(2, 3, 1)}, "f has shape"),
        ({"C": torch.zeros(2, 3, 8, 8).transpose(2, 3)}, "contiguous"),
        ({"C": torch.zeros(2, 3, 8, 8, dtype=torch.float16)}, "state C is"),
        ({"m": torch.zeros(2, 3, dtype=torch.bfloat16)}, "state m is"),
        ({"norm_weight": torch.ones(8)}, "norm_weight has 8"),
        ({"ogate": torch.ones(2, 3, 9)}, "ogate has shape"),
        ({"backend": "cuda"}, "backend 'cuda'"),
        ({"input_gate": "tanh"}, "input_gate"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(2, 3, 8) for name in "qkv"}
    arguments |= {name: torch.zeros(2, 3) for name in "ifm"}
    arguments |= {"C": torch.zeros(2, 3, 8, 8), "n": torch.zeros(2, 3, 8)} | change
    arguments["state"] = tuple(arguments.pop(name) for name in "Cnm")
    with pytest.raises(ValueError, match=message):
        mlstm_step(**arguments)
