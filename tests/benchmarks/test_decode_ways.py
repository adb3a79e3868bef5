"""What the benchmark of a step's ways holds, and how it compares them."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.decode_ways import SHAPES, STEPS, attention_ways, beside, held, step_ways
from benchmarks.inference_cases import model_of
from kernels.attention import decode_triton
from kernels.linear import several_triton, skinny_triton
from xlstm.generation import packed


def test_constants_are_held_for_a_while_and_whatever_happens() -> None:
    before = several_triton.BLOCK_N, packed.most_chained(64)
    way, inside = step_ways(4)["chain, 32 rows, 2048 bytes of one, 512 a warp"], []

    def fails() -> None:
        with held(way):
            inside.extend([several_triton.BLOCK_N, packed.most_chained(64)])
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert inside == [32, 4]
    assert (several_triton.BLOCK_N, packed.most_chained(64)) == before


def test_the_defaults_are_among_the_ways() -> None:
    for ways in (step_ways(1), step_ways(4), attention_ways()):
        assert any(
            all(getattr(*place) == value for place, value in constants.items() if place[1] != "most_chained")
            for way, constants in ways.items()
            if way != "products"
        )


def test_every_constant_is_one_of_the_kernels() -> None:
    for constants in (*step_ways(1).values(), *step_ways(16).values(), *attention_ways().values()):
        for module, name in constants:
            assert module in (decode_triton, several_triton, skinny_triton, packed)
            assert hasattr(module, name)


def test_cases_are_models_and_shapes() -> None:
    for case in STEPS:
        size, arch, batch = case.split(":")
        assert model_of(size, arch).num_blocks > 1
        assert int(batch) >= 1
    assert all(len(shape.split("x")) == 4 for shape in SHAPES)


def test_ways_are_compared_with_the_first() -> None:
    calls: list[str] = []
    built = {
        "one": (lambda: calls.append("one"), torch.tensor([3.0, 4.0])),
        "two": (lambda: calls.append("two"), torch.tensor([3.0, 4.5])),
    }
    rows = list(beside("case", built, 10, torch.device("cpu")))
    assert calls[:4] == ["one", "two", "one", "two"]
    assert [row["way"] for row in rows] == ["one", "two"]
    assert rows[0]["ratio"] == 1
    assert [row["apart"] for row in rows] == pytest.approx([0, 0.1])
