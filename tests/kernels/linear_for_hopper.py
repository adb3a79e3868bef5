"""Compiles the map of one sequence for Hopper without a GPU and prints what its machine code shows.

TRITON_INTERPRET=0 python -m tests.kernels.linear_for_hopper
"""

import json
from typing import Any

from kernels.linear.skinny_triton import ELEMENTS, LINE, LINES, WARPS, _linear_kernel
from tests.kernels.hopper import compiled, disassemble, registers_and_stack

WIDTH = 2048
FLOATS = ("gate_weight", "gate_bias", "gates")


def about(fetches: bool, glu: bool) -> dict[str, Any]:
    """Of a map from 2,048 channels in bfloat16, with a norm, or with SwiGLU too."""
    block_n = ELEMENTS // WIDTH // (2 if glu else 1)
    values: dict[str, Any] = {
        "WIDTH": WIDTH, "NORM": True, "GATE_BIAS": True, "GLU": glu, "RESIDUAL": False,
        "FETCH": LINES if fetches else 0, "LINE": LINE, "BLOCK_N": block_n, "BLOCK_K": WIDTH, "OVERLAP": True,
    }  # fmt: skip
    types = {"rows": "i32", "num_gates": "i32", "fetches": "i32", "eps": "fp32"}
    tensors = [name for name in _linear_kernel.arg_names if name not in types and name not in values]
    types |= {name: "*fp32" if name in FLOATS else "*bf16" for name in tensors}
    kernel = compiled(_linear_kernel, types, values, tensors, num_warps=WARPS, num_stages=1)
    registers, stack = registers_and_stack(kernel.asm["cubin"])
    code = [line for line in disassemble(kernel.asm["cubin"], "-sass").splitlines() if ";" in line]
    places = {
        what: [number for number, line in enumerate(code) if what in line]
        for what in ("CCTL", "ACQBULK", "LDG")
    }
    return {"registers": registers, "stack": stack, **places}


def main() -> None:
    """One JSON object: registers, stack, and where prefetches, waits and loads stand."""
    found = {f"{fetches} {glu}": about(fetches, glu) for fetches in (False, True) for glu in (False, True)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
