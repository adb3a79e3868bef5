"""The attention step and maps of one vector as the installed Triton and assembler compile them for Hopper."""

import pytest

pytest.importorskip("triton")

from tests.kernels.hopper import found_by

REGISTERS, PROGRAMS = 65_536, 32
"""Of a multiprocessor, which runs so many programs at most."""
SPILLED = {"join 128 256": 64}
"""Bytes of stack, where a join of most parts was timed with them; of all others none."""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, int]]:
    """By kernel and shape. In a process of its own: this one has the interpreter."""
    answer: dict[str, dict[str, int]] = found_by("tests.kernels.step_for_hopper")
    return answer


def test_little_is_spilled(found: dict[str, dict[str, int]]) -> None:
    for name, about in found.items():
        assert about["stack"] <= SPILLED.get(name, 0), name


def test_a_cache_is_read_by_as_many_programs_as_there_is_room_for(found: dict[str, dict[str, int]]) -> None:
    """Of one warp each: their number hides the latency of loads. With 256 channels in float32 fewer fit."""
    for name, about in found.items():
        if name.startswith("part"):
            assert about["warps"] == 1
            together = min(PROGRAMS, REGISTERS // (about["registers"] * 32))
            assert together >= (PROGRAMS if name != "part 256 fp32" else 24), name


def test_a_program_requests_all_its_weights_before_it_waits(found: dict[str, dict[str, int]]) -> None:
    maps = {name: about for name, about in found.items() if name.startswith("map")}
    assert maps
    for name, about in maps.items():
        assert about["early"] * about["request"] >= about["bytes"], name
        assert about["warps"] == (4 if "down 1.4B" in name else 2), name
