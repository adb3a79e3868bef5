"""The map of one sequence as the installed Triton and assembler compile it for Hopper, without a GPU."""

from typing import Any

import pytest

pytest.importorskip("triton")

from tests.kernels.hopper import found_by


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """By whether it fetches ahead and has SwiGLU. In a process of its own: this one has the interpreter."""
    answer: dict[str, dict[str, Any]] = found_by("tests.kernels.linear_for_hopper")
    return answer


@pytest.mark.parametrize("glu", [False, True])
def test_weights_are_requested_before_a_wait_and_the_next_ones_between(
    found: dict[str, dict[str, Any]], glu: bool
) -> None:
    plain, fetching = found[f"False {glu}"], found[f"True {glu}"]
    assert plain["CCTL"] == []
    (fetch,) = fetching["CCTL"]
    wait = fetching["ACQBULK"][0]
    own = [place for place in fetching["LDG"] if place < wait]
    assert len(own) >= 8  # 64 elements a thread, 8 of them a load, and the norm's weights
    assert max(own) < fetch < wait


def test_nothing_is_spilled_and_fetching_takes_no_registers(found: dict[str, dict[str, Any]]) -> None:
    assert all(about["stack"] == 0 for about in found.values())
    for glu in (False, True):
        assert found[f"True {glu}"]["registers"] == found[f"False {glu}"]["registers"] <= 72
