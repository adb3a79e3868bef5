"""Compiles the backward pass of norm and gate for Hopper without a GPU and prints what a thread needs.

TRITON_INTERPRET=0 python -m tests.kernels.norm_gate_for_hopper
"""

import json
import re

from kernels.mlstm.norm_gate_triton import STAGES, WALKED, WARPS, _backward_kernel, block_rows, block_v
from tests.kernels.hopper import compiled, disassemble, registers_and_stack

WIDTHS = (128, 256)
HALVES = ("dy", "h", "o", "dh", "do")


def about(width: int) -> dict[str, int]:
    """Of bfloat16 heads of a width."""
    rows, block = block_rows(width, WALKED), block_v(width)
    values = {"BLOCK_T": rows, "BLOCK_V": block, "STAGES": STAGES}
    types = {}
    for name in _backward_kernel.arg_names:
        kind = "*bf16" if name in HALVES else "*fp32" if name in ("weight", "partial") else "i32"
        types[name] = "fp32" if name == "eps" else kind
    aligned = [name for name in types if name not in (*values, "eps", "tokens", "heads", "walkers")]
    kernel = compiled(_backward_kernel, types, values, aligned, num_warps=WARPS)
    registers, stack = registers_and_stack(kernel.asm["cubin"])
    copies = len(re.findall(r"LDGSTS\S*\.128", disassemble(kernel.asm["cubin"], "-sass")))
    return {
        "threads": 32 * WARPS, "registers": registers, "stack": stack,
        "shared": kernel.metadata.shared, "copies": copies,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps({width: about(width) for width in WIDTHS}))
