"""Compiles the attention step and the maps of one vector for Hopper without a GPU, and prints what was made.

TRITON_INTERPRET=0 python -m tests.kernels.step_for_hopper
"""

import json
from typing import Any

import triton

from kernels.attention.decode_triton import BLOCK_T, WARPS, _join_kernel, _part_kernel, join_warps
from kernels.linear.skinny_triton import _linear_kernel, tile
from tests.kernels.hopper import compiled, instructions, registers_and_stack
from tests.kernels.linear_for_hopper import FLOATS, MAPS

CACHES = ("q", "k", "v", "keys", "values")
HEADS = (64, 128, 256)
JOINS = ((64, 128), (64, 256), (128, 64), (128, 128), (128, 256))
"""Width of a head, and its parts."""


def part(width: int, kind: str) -> dict[str, int]:
    """Of a cache of this type."""
    values: dict[str, Any] = {"BLOCK_T": BLOCK_T, "BLOCK_D": triton.next_power_of_2(width), "OVERLAP": True}
    types = {name: "i32" for name in _part_kernel.arg_names if name not in values}
    types |= dict.fromkeys(CACHES, f"*{kind}") | {"sums": "*fp32", "terms": "*fp32"}
    types |= {"lengths": "*i64", "scale": "fp32"}
    aligned = [name for name in types if name not in ("scale", "heads")]
    return about(compiled(_part_kernel, types, values, aligned, num_warps=WARPS))


def join(width: int, splits: int) -> dict[str, int]:
    values = {"SPLITS": splits, "BLOCK_D": width, "OVERLAP": True}
    types = {"sums": "*fp32", "terms": "*fp32", "h": "*bf16", "width": "i32"}
    return about(compiled(_join_kernel, types, values, list(types), num_warps=join_warps(splits, width)))


def vector(width: int, norm: bool, glu: bool) -> dict[str, int]:
    """Of a map in bfloat16; gates beside it where a norm is and no SwiGLU."""
    block_n, block_k, warps = tile(width, glu)
    values: dict[str, Any] = {
        "WIDTH": width, "NORM": norm, "GATE_BIAS": norm and not glu, "GLU": glu, "RESIDUAL": not norm,
        "BLOCK_N": block_n, "BLOCK_K": block_k, "OVERLAP": True,
    }  # fmt: skip
    types = {"rows": "i32", "num_gates": "i32", "eps": "fp32"}
    tensors = [name for name in _linear_kernel.arg_names if name not in types and name not in values]
    types |= {name: "*fp32" if name in FLOATS else "*bf16" for name in tensors}
    kernel = compiled(_linear_kernel, types, values, [*tensors, "rows"], num_warps=warps, num_stages=1)
    each = 16 * 32 * warps
    return about(kernel) | {"bytes": block_n * (2 if glu else 1) * width * 2, "request": each}


def about(kernel: Any) -> dict[str, int]:
    registers, stack = registers_and_stack(kernel.asm["cubin"])
    code = instructions(kernel.asm["cubin"])
    wait = next(number for number, line in enumerate(code) if "ACQBULK" in line)
    early = sum("LDG.E.EF.128" in line for line in code[:wait])
    return {"registers": registers, "stack": stack, "warps": kernel.metadata.num_warps, "early": early}


def main() -> None:
    """One JSON object, by kernel: registers, stack, warps; of weights, bytes and those of a request."""
    found = {f"part {width} {kind}": part(width, kind) for width in HEADS for kind in ("bf16", "fp32")}
    found |= {f"join {width} {splits}": join(width, splits) for width, splits in JOINS}
    found |= {f"map {name}": vector(*shape) for name, shape in MAPS.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
