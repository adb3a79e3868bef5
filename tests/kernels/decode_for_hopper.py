"""Compiles the decode step for Hopper without a GPU and prints what its machine code shows.

TRITON_INTERPRET=0 python -m tests.kernels.decode_for_hopper
"""

import json
import re
from typing import Any

from kernels.mlstm.decode_triton import step_kernel, tile
from tests.kernels.hopper import compiled, instructions, registers_and_stack

HEADS, WIDTH, VALUE_WIDTH = 8, 256, 512
BATCH = 8
BYTES = {"fp32": 4, "bf16": 2}
HALVES = ("q", "k", "v", "ogate", "weight", "h")
NUMBERS = ("scale", "eps", "cap", "norm_eps")
WAITS = ("BAR.SYNC", "SHFL", "ACQBULK", "MUFU.EX2")
"""What stands behind an arrival, or where one is waited for."""


def step(state: str, overlap: bool) -> tuple[Any, int, int]:
    """The kernel of a batch of 8, its warps, and bytes of C a program."""
    block_v, warps, rows = tile(BATCH * HEADS, WIDTH, VALUE_WIDTH, BYTES[state], normed=False)
    values: dict[str, Any] = {
        "HEADS": HEADS, "WIDTH": WIDTH, "VALUE_WIDTH": VALUE_WIDTH, "SOFT_CAP": False,
        "SIGMOID_INPUT": False, "NORM": False, "OUTPUT_GATE": False, "BLOCK_K": WIDTH, "BLOCK_V": block_v,
        "BLOCK_H": VALUE_WIDTH, "ROWS": rows, "OVERLAP": overlap, "i_head": 1, "f_head": 1,
    }  # fmt: skip
    types = {}
    for name in step_kernel.arg_names:
        if name in NUMBERS:
            types[name] = "fp32"
        elif name.endswith(("_batch", "_head")):
            types[name] = "i32"
        else:
            kind = "i32" if name == "arrivals" else state if name == "C" else "fp32"
            types[name] = "*bf16" if name in HALVES else f"*{kind}"
    aligned = [name for name in types if name not in (*values, *NUMBERS, "i_batch", "f_batch")]
    size = WIDTH * block_v * BYTES[state]
    return compiled(step_kernel, types, values, aligned, num_warps=warps), warps, size


def about(state: str, overlap: bool) -> dict[str, Any]:
    kernel, warps, size = step(state, overlap)
    registers, stack = registers_and_stack(kernel.asm["cubin"])
    code = instructions(kernel.asm["cubin"])
    loads = [number for number, line in enumerate(code) if re.search(r"LDG\S*\.EF\.128", line)]
    first = next(number for number, line in enumerate(code) if any(wait in line for wait in WAITS))
    return {
        "registers": registers, "stack": stack, "warps": warps, "bytes": size,
        "state_loads": (len(loads), sum(number < first for number in loads)),
    }  # fmt: skip


def main() -> None:
    """One JSON object, by state and launch."""
    found = {
        f"{state}, {'dependent' if overlap else 'ordinary'}": about(state, overlap)
        for state in BYTES
        for overlap in (False, True)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
