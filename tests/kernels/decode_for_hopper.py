"""Compiles the decode step for Hopper without a GPU and prints what its machine code shows.

TRITON_INTERPRET=0 python -m tests.kernels.decode_for_hopper
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton

from kernels.mlstm.decode_triton import step_kernel, tile
from tests.kernels.compile_for_hopper import HOPPER

HEADS, WIDTH, VALUE_WIDTH = 8, 256, 512
BATCH = 8
BYTES = {"fp32": 4, "bf16": 2}
HALVES = ("q", "k", "v", "ogate", "weight", "h")
WAITS = ("BAR.SYNC", "SHFL", "ACQBULK", "MUFU.EX2")
"""What stands behind an arrival, or where one is waited for."""


def compiled(state: str, overlap: bool) -> tuple[Any, int, int]:
    """The kernel of a batch of 8, its warps, and bytes of C a program."""
    block_v, warps, rows = tile(BATCH * HEADS, WIDTH, VALUE_WIDTH, BYTES[state], normed=False)
    values: dict[str, Any] = {
        "HEADS": HEADS, "WIDTH": WIDTH, "VALUE_WIDTH": VALUE_WIDTH, "SOFT_CAP": False,
        "SIGMOID_INPUT": False, "NORM": False, "OUTPUT_GATE": False, "BLOCK_K": WIDTH, "BLOCK_V": block_v,
        "BLOCK_H": VALUE_WIDTH, "ROWS": rows, "OVERLAP": overlap, "i_head": 1, "f_head": 1,
    }  # fmt: skip
    signature, attributes = {}, {}
    for place, name in enumerate(step_kernel.arg_names):
        if name in values:
            signature[name] = "constexpr"
        elif name in ("scale", "eps", "cap", "norm_eps"):
            signature[name] = "fp32"
        elif name.endswith(("_batch", "_head")):
            signature[name] = "i32"
        else:
            kind = "i32" if name == "arrivals" else state if name == "C" else "fp32"
            signature[name] = "*bf16" if name in HALVES else f"*{kind}"
        if name not in values and name not in ("scale", "eps", "cap", "norm_eps", "i_batch", "f_batch"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    places = {(step_kernel.arg_names.index(name),): value for name, value in values.items()}
    source = triton.compiler.ASTSource(step_kernel, signature=signature, constexprs=places, attrs=attributes)
    size = WIDTH * block_v * BYTES[state]
    target = triton.backends.compiler.GPUTarget(*HOPPER)
    return triton.compile(source, target=target, options={"num_warps": warps}), warps, size


def disassemble(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def about(state: str, overlap: bool) -> dict[str, Any]:
    kernel, warps, size = compiled(state, overlap)
    usage = disassemble(kernel.asm["cubin"], "-res-usage")
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    code = [line for line in disassemble(kernel.asm["cubin"], "-sass").splitlines() if ";" in line]
    loads = [number for number, line in enumerate(code) if re.search(r"LDG\S*\.EF\.128", line)]
    first = next(number for number, line in enumerate(code) if any(wait in line for wait in WAITS))
    return {
        "registers": -(-registers // 8) * 8, "stack": stack, "warps": warps, "bytes": size,
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
