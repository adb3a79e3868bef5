"""Maps of several sequences as the installed Triton and assembler compile them for Hopper, without a GPU."""

from typing import Any

import pytest

pytest.importorskip("triton")

from tests.kernels.hopper import found_by

REGISTERS, SHARED = 65_536, 227 * 1024
"""Of a multiprocessor; of a program 1 KiB of shared memory is the system's."""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """By map and sequences. In a process of its own: this one has the interpreter."""
    answer: dict[str, dict[str, Any]] = found_by("tests.kernels.linear_for_hopper")
    return answer


def test_nothing_is_spilled(found: dict[str, dict[str, Any]]) -> None:
    assert {name: about["stack"] for name, about in found.items()} == dict.fromkeys(found, 0)


def test_weights_are_requested_before_the_wait_and_used_after_it(found: dict[str, dict[str, Any]]) -> None:
    """16 bytes a lane: 16 requests are 64 KiB of a program of 8 warps. Of longer rows two pieces are."""
    for name, about in found.items():
        before = sum(place < about["ACQBULK"][0] for place in about["LDG.E.EF.128"])
        wanted = {"down 1.4B": 32, "down 400M": 22, "up 160M": 12}.get(name.split(" at ")[0], 16)
        assert before >= wanted, (name, before)
        assert about["STS"][0] > about["ACQBULK"][0], name  # which would wait for them
        assert len(about["HMMA"]) >= 16, name


def test_programs_share_a_multiprocessor(found: dict[str, dict[str, Any]]) -> None:
    """So that one computes while the weights of another come: but for long rows, of few programs."""
    for name, about in found.items():
        by_registers = REGISTERS // (about["registers"] * about["threads"])
        by_shared = SHARED // (about["shared"] + 1024)
        assert min(by_registers, by_shared) >= (1 if "down" in name else 2), name
