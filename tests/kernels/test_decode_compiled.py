"""The decode step as the installed Triton and assembler compile it for Hopper, without a GPU.

The assembler orders loads as it likes. It issued those of C, nearly all that a step reads, when those of q, k
and n had arrived and were being summed: a whole round trip to memory later.
"""

from typing import Any

import pytest

pytest.importorskip("triton")

from tests.kernels.hopper import found_by

STATES = ["fp32", "bf16"]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """By state and whether a launch is dependent. In a process of its own: this one has the interpreter."""
    answer: dict[str, dict[str, Any]] = found_by("tests.kernels.decode_for_hopper")
    return answer


@pytest.mark.parametrize("launch", ["ordinary", "dependent"])
@pytest.mark.parametrize("state", STATES)
def test_the_state_is_requested_before_anything_is_waited_for(
    found: dict[str, dict[str, Any]], state: str, launch: str
) -> None:
    loads, before = found[f"{state}, {launch}"]["state_loads"]
    assert loads == before > 0


@pytest.mark.parametrize("launch", ["ordinary", "dependent"])
@pytest.mark.parametrize("state", STATES)
def test_the_programs_of_a_multiprocessor_request_128_kib(
    found: dict[str, dict[str, Any]], state: str, launch: str
) -> None:
    """As many of them share it as registers allow; none is spilled."""
    about = found[f"{state}, {launch}"]
    assert about["stack"] == 0
    programs = 65536 // (about["registers"] * 32 * about["warps"])
    assert programs * about["bytes"] >= 128 * 2**10
