"""Compiles the backward pass of norm and gate for Hopper without a GPU and prints what a thread needs.

TRITON_INTERPRET=0 python -m tests.kernels.norm_gate_for_hopper
"""

import json
import re

import triton

from kernels.mlstm.norm_gate_triton import STAGES, WALKED, WARPS, _backward_kernel, block_rows, block_v
from tests.kernels.compile_for_hopper import HOPPER
from tests.kernels.decode_for_hopper import disassemble

WIDTHS = (128, 256)
HALVES = ("dy", "h", "o", "dh", "do")


def about(width: int) -> dict[str, int]:
    """Of bfloat16 heads of a width."""
    rows, block = block_rows(width, WALKED), block_v(width)
    values = {"BLOCK_T": rows, "BLOCK_V": block, "STAGES": STAGES}
    signature, attributes = {}, {}
    for place, name in enumerate(_backward_kernel.arg_names):
        kind = "*bf16" if name in HALVES else "*fp32" if name in ("weight", "partial") else "i32"
        signature[name] = "constexpr" if name in values else "fp32" if name == "eps" else kind
        if name not in (*values, "eps", "tokens", "heads", "walkers"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    places = {(_backward_kernel.arg_names.index(name),): value for name, value in values.items()}
    source = triton.compiler.ASTSource(
        _backward_kernel, signature=signature, constexprs=places, attrs=attributes
    )
    target = triton.backends.compiler.GPUTarget(*HOPPER)
    compiled = triton.compile(source, target=target, options={"num_warps": WARPS})
    usage = disassemble(compiled.asm["cubin"], "-res-usage")
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    copies = len(re.findall(r"LDGSTS\S*\.128", disassemble(compiled.asm["cubin"], "-sass")))
    return {
        "threads": 32 * WARPS, "registers": -(-registers // 8) * 8, "stack": stack,
        "shared": compiled.metadata.shared, "copies": copies,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps({width: about(width) for width in WIDTHS}))
