"""The backward pass of norm and gate as the installed Triton compiles it for Hopper, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
REGISTERS, SHARED, RESERVED = 65_536, 227 * 1024, 1024
"""Of a multiprocessor; and of shared memory what each program has besides."""


def test_all_programs_run_at_the_same_time_and_loads_are_under_way() -> None:
    """Each input is copied 16 bytes at a time, for two blocks ahead and within the loop."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.norm_gate_for_hopper"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for about in json.loads(done.stdout).values():
        assert about["stack"] == 0
        programs = min(
            REGISTERS // (about["registers"] * about["threads"]), SHARED // (about["shared"] + RESERVED)
        )
        assert programs >= 8
        assert about["copies"] == 9
