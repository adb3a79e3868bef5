"""Compiles the maps of several sequences for Hopper without a GPU and prints what their machine code shows.

TRITON_INTERPRET=0 python -m tests.kernels.linear_for_hopper
"""

import json
from typing import Any

import triton

from kernels.linear.several_triton import BLOCK_N, CHUNK_BYTES, WARP_BYTES, _several_kernel
from tests.kernels.hopper import compiled, instructions, registers_and_stack

MAPS = {
    "qkvo 1.4B": (2048, True, False),
    "up 1.4B": (2048, True, True),
    "out 1.4B": (2048, False, False),
    "down 1.4B": (5504, False, False),
    "up 400M": (1024, True, True),
    "down 400M": (2752, False, False),
    "up 160M": (768, True, True),
}
"""Width in, a norm, SwiGLU."""
FLOATS = ("gate_weight", "gate_bias", "gates")


def about(width: int, norm: bool, glu: bool, most: int) -> dict[str, Any]:
    """Of a map in bfloat16 of so many sequences; gates beside it where a norm is and no SwiGLU."""
    chunk = min(triton.next_power_of_2(width), CHUNK_BYTES // 2)
    warps = chunk * 2 // WARP_BYTES
    values: dict[str, Any] = {
        "WIDTH": width, "NORM": norm, "GATE_BIAS": norm and not glu, "GLU": glu, "RESIDUAL": not norm,
        "MOST": most, "BLOCK_N": BLOCK_N, "CHUNK": chunk, "PARTS": warps, "WIDE": False, "OVERLAP": True,
    }  # fmt: skip
    types = {"batch": "i32", "rows": "i32", "num_gates": "i32", "eps": "fp32"}
    tensors = [name for name in _several_kernel.arg_names if name not in types and name not in values]
    types |= {name: "*fp32" if name in FLOATS else "*bf16" for name in tensors}
    kernel = compiled(_several_kernel, types, values, [*tensors, "rows"], num_warps=warps, num_stages=1)
    registers, stack = registers_and_stack(kernel.asm["cubin"])
    code = instructions(kernel.asm["cubin"])
    places = {
        what: [number for number, line in enumerate(code) if what in line]
        for what in ("ACQBULK", "LDG.E.EF.128", "STS", "HMMA")
    }
    return {
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "threads": 32 * warps,
        **places,
    }


def main() -> None:
    """One JSON object, by map and sequences: registers, stack, shared memory, places of instructions."""
    wanted = [(name, most) for name in MAPS for most in (4, 8, 16) if most < 16 or "1.4B" not in name]
    print(json.dumps({f"{name} at {most}": about(*MAPS[name], most) for name, most in wanted}))


if __name__ == "__main__":
    main()
