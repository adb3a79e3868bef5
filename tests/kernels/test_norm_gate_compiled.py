"""The backward pass of norm and gate as the installed Triton compiles it for Hopper, without a GPU."""

import pytest

pytest.importorskip("triton")

from tests.kernels.hopper import found_by

REGISTERS, SHARED, RESERVED = 65_536, 227 * 1024, 1024
"""Of a multiprocessor; and of shared memory what each program has besides."""


def test_all_programs_run_at_the_same_time_and_loads_are_under_way() -> None:
    """Each input is copied 16 bytes at a time, for two blocks ahead and within the loop."""
    for about in found_by("tests.kernels.norm_gate_for_hopper").values():
        assert about["stack"] == 0
        programs = min(
            REGISTERS // (about["registers"] * about["threads"]), SHARED // (about["shared"] + RESERVED)
        )
        assert programs >= 8
        assert about["copies"] == 9
