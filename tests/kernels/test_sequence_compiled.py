"""The sequence kernels as the installed Triton compiles them for Hopper, without a GPU.

An asynchronous matrix product reads its operands from shared memory while the program goes on. Triton's
pipeliner gives a load that is also read into registers one buffer less than the products in flight need, and
the copy for a later step then overwrites what an earlier product still reads: h was wrong by 1e-2 on an H100,
differently in every run. In the intermediate code this is plain to see.
"""

import pytest

pytest.importorskip("triton")

from tests.kernels.hopper import found_by

KERNELS = [
    "states", "outputs", "outputs, described", "outputs, float16", "state_gradients", "gradients",
    "gradients, described", "gradients, float16",
]  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[int, list[str]]]:
    """In a process of its own: this one has Triton's interpreter."""
    answer: dict[str, tuple[int, list[str]]] = found_by("tests.kernels.compile_for_hopper")
    return answer


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_product_in_flight_reads_what_is_overwritten(
    found: dict[str, tuple[int, list[str]]], kernel: str
) -> None:
    products, overwritten = found[kernel]
    assert products > 0
    assert not overwritten


@pytest.mark.parametrize("kernel", ["mixed", "outputs, float16, pipelined", "gradients, float16, pipelined"])
def test_would_see_it(found: dict[str, tuple[int, list[str]]], kernel: str) -> None:
    """And why float16 has one stage."""
    assert found[kernel][1]
