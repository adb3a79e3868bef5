"""The attention decode step against torch's own attention in float64, and the cache that it extends."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attention_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = pytest.mark.parametrize("backend", ["reference", "triton"])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def problem(
    lengths: list[int], heads: int, width: int, capacity: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """q, k, v of one token; caches with what must not be read behind their ends; lengths."""
    generator = torch.Generator().manual_seed(0)
    batch = len(lengths)
    new = [torch.randn(batch, heads, width, generator=generator).to(DEVICE, dtype) for _ in range(3)]
    caches = [torch.randn(batch, heads, capacity, width, generator=generator) for _ in range(2)]
    for cache in caches:
        for row, length in zip(cache, lengths, strict=True):
            row[:, length:] = torch.nan
    return new, [cache.to(DEVICE, dtype) for cache in caches], torch.tensor(lengths, device=DEVICE)


@BACKENDS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("lengths", "heads", "width", "capacity"),
    [
        ([0], 1, 16, 1),
        ([0, 5, 130], 2, 24, 131),
        ([64, 63], 3, 64, 300),
        ([1000, 7], 1, 128, 1024),
        ([3, 700], 1, 16, 5000),  # most parts are empty
    ],
)
def test_step_is_attention(
    lengths: list[int], heads: int, width: int, capacity: int, dtype: torch.dtype, backend: str
) -> None:
    (q, k, v), (keys, values), places = problem(lengths, heads, width, capacity, dtype)
    before = keys.clone(), values.clone()
    h = attention_step(q, k, v, keys, values, places, backend=backend)
    for j, length in enumerate(lengths):
        seen = [
            torch.cat([cache[j, :, :length], new[j, :, None]], 1).double()
            for cache, new in zip(before, (k, v), strict=True)
        ]
        expected = F.scaled_dot_product_attention(q[j, :, None].double(), *seen)[:, 0]
        error = (h[j].double() - expected).norm() / expected.norm()
        assert error < TOLERANCE[dtype], error
        for cache, old, new in zip((keys, values), before, (k, v), strict=True):
            assert torch.equal(cache[j, :, :length], old[j, :, :length])
            assert torch.equal(cache[j, :, length], new[j])
            assert cache[j, :, length + 1 :].isnan().all()


@BACKENDS
def test_scores_that_differ_much(backend: str) -> None:
    """The one key that fits gets all the weight, wherever its part is."""
    lengths, width = [700], 32
    (q, k, v), (keys, values), places = problem(lengths, 1, width, 701, torch.float32)
    for place in (0, 63, 350, 699):
        cache = keys.clone()
        cache[0, 0, place] = 200 * q[0, 0]
        h = attention_step(q, k, v, cache, values.clone(), places, backend=backend)
        torch.testing.assert_close(h[0, 0], values[0, 0, place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "capacity", "wanted"),
    [
        (1, 1, 1), (1, 33, 2), (12, 2112, 128), (16, 16_448, 256), (64, 2112, 64), (96, 2048, 64),
        (256, 2048, 16), (256, 16_448, 64), (1024, 2112, 8), (1024, 65_600, 16), (20_000, 65_600, 1),
        (1, 10**6, 256),
    ],
)  # fmt: skip
def test_parts_fill_the_machine_and_end_evenly(rows: int, capacity: int, wanted: int) -> None:
    pytest.importorskip("triton")
    from kernels.attention import decode_triton

    found = decode_triton.parts(rows, capacity)
    assert found == wanted
    assert found == 1 or found * decode_triton.LEAST_TOKENS <= capacity
    assert found == 1 or rows * found <= decode_triton.MOST_PROGRAMS


def test_arguments_that_do_not_fit() -> None:
    (q, k, v), (keys, values), places = problem([3], 2, 16, 8, torch.float32)
    with pytest.raises(ValueError, match=r"k has shape \(1, 1, 16\): must be \(1, 2, 16\)"):
        attention_step(q, k[:, :1], v, keys, values, places)
    with pytest.raises(ValueError, match=r"values has shape \(1, 2, 7, 16\)"):
        attention_step(q, k, v, keys, values[:, :, :7], places)
    with pytest.raises(ValueError, match=r"lengths is torch\.int32"):
        attention_step(q, k, v, keys, values, places.int())
    with pytest.raises(ValueError, match="must be contiguous"):
        attention_step(q, k, v, keys.transpose(2, 3).contiguous().transpose(2, 3), values, places)


def test_the_operator_is_registered_right() -> None:
    (q, k, v), (keys, values), places = problem([3, 0], 2, 16, 8, torch.float32)
    arguments = (q, k, v, keys.nan_to_num(), values.nan_to_num(), places, "reference")
    torch.library.opcheck(torch.ops.isoflop.attention_step.default, arguments)


@pytest.mark.gpu
@needs_gpu
def test_one_graph_serves_all_lengths() -> None:
    (q, k, v), (keys, values), places = problem([0], 4, 64, 512, torch.bfloat16)
    attention_step(q, k, v, keys, values, places)
    places.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = attention_step(q, k, v, keys, values, places)
        places += 1
    for length in range(300):
        graph.replay()
        expected = F.scaled_dot_product_attention(
            q[:, :, None], keys[:, :, : length + 1], values[:, :, : length + 1]
        )[:, :, 0]
        torch.testing.assert_close(h, expected, rtol=2e-2, atol=2e-2)
