"""Compiles the sequence kernels for Hopper without a GPU and prints what it finds in the intermediate code.

TRITON_INTERPRET=0 python -m tests.kernels.compile_for_hopper
"""

import json
import re
from typing import Any

import triton
import triton.language as tl

from kernels.mlstm import sequence_chunks, sequence_gradients, sequence_states
from kernels.mlstm.sequence_configs import HALF, SequenceConfig, block_width
from tests.kernels.hopper import compiled

WIDTHS = (128, 256)
STATES = ("C", "dC")
ABSENT = ("cu", "first", "owner", "C0", "n0", "C1", "n1", "dC1", "dn1", "dC0", "dn0")
HALVES = ("a", "b", "q", "k", "v", "g", "h", "C", "dC", "dq", "dk", "dv")


def intermediate_code(
    kernel: Any,
    constants: dict[str, Any],
    stages: int,
    blocks: dict[str, tuple[int, ...]],
    tokens: str = "bf16",
    **options: Any,
) -> str:
    """Triton's code after its pipeliner. blocks: of descriptors; tokens: type of what is not a state."""
    types: dict[str, str] = {}
    values = dict(constants)
    for name in kernel.arg_names:
        if (name.endswith("_ptr") and name[:-4] in ABSENT) or (name.endswith("_desc") and not blocks):
            values[name] = None
        if name.endswith("_desc") and blocks:
            types[name] = f"tensordesc<bf16{list(blocks[name[:-5]])}>"
        elif name.endswith("_ptr"):
            half = "bf16" if name[:-4] in STATES else tokens
            types[name] = f"*{half}" if name[:-4] in HALVES else "*fp32"
        else:
            types[name] = "fp32" if name in ("scale", "eps") else "i32"
    aligned = [name for name in types if name not in values and name.endswith(("_ptr", "_st", "_sh"))]
    return str(
        compiled(kernel, types, values, aligned, **options, num_warps=4, num_stages=stages).asm["ttgir"]
    )


def overwritten_operands(code: str) -> list[str]:
    """Operands of products that may still be in flight at the next step, which registers also read."""
    buffer = dict(re.findall(r"(%\S+) = ttg\.memdesc_index (%\w+)\[", code))
    for view, of in re.findall(r"(%\S+) = ttg\.memdesc_trans (%\S+)", code):
        buffer[view] = buffer.get(of, of)
    loaded = {buffer.get(x, x) for x in re.findall(r"ttg\.local_load (%\S+)", code)}
    lines = code.splitlines()
    found = []
    for number, line in enumerate(lines):
        product = re.search(r"(%\S+) = ttng\.warp_group_dot (%\S+), (%\S+), .*isAsync = true", line)
        if product is None:
            continue
        result, *operands = product.groups()
        wait = next((w for w in lines[number:] if "warp_group_dot_wait" in w and result in w), "pendings = 9")
        if "pendings = 0" not in wait:
            found += [x for x in operands if buffer.get(x, x) in loaded]
    return found


def constants(kernel: str, config: SequenceConfig, described: bool = False) -> dict[str, Any]:
    K, V = WIDTHS
    common = {"K": K, "V": V, "KP": K, "VP": V, "L": config.chunk, "VARLEN": False, "ALIGN": 16}
    common |= {"PRECISION": config.precision}
    blocks = blocks_of(kernel, config, described)
    if kernel in ("states", "state_gradients"):
        common |= {"BK": blocks.tile[0], "BV": blocks.tile[1], "BT": blocks.tokens, "TOTALS": False}
        common |= {"HAS_START": False, "HAS_END": False} | ({"EXACT": True} if kernel != "states" else {})
    else:
        BD, BR = (
            [block_width(width, limit) for width in WIDTHS] for limit in (blocks.columns, blocks.reduce)
        )
        common |= {"BM": blocks.rows, "PRECISE": False, "DESCRIBED": described}
        if kernel == "outputs":
            common |= {"BR": BR[0], "BD": BD[1]}
        else:
            common |= {"BRK": BR[0], "BRV": BR[1], "BDK": BD[0], "BDV": BD[1]}
            common |= {"EXACT": True, "WITH_DN": True}
    return common


def blocks_of(kernel: str, config: SequenceConfig, described: bool) -> Any:
    if not described:
        return getattr(config, kernel)
    assert config.described is not None
    return config.described[kernel == "gradients"]


def descriptor_blocks(kernel: str, values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    rows = values["BM"]
    if kernel == "outputs":
        tokens = (1, 1, rows, values["BR"])
        return {"q": tokens, "k": tokens, "C": (values["BR"], values["BD"])}
    of_k, of_v = (1, 1, rows, values["BRK"]), (1, 1, rows, values["BRV"])
    state = (values["BDK"], values["BRV"])
    state_of_v = (values["BRK"], values["BDV"])
    return {"q": of_k, "k": of_k, "v": of_v, "g": of_v, "C": state, "dC": state, "dC_of_v": state_of_v}


@triton.jit
def mixed_kernel(a_ptr, b_ptr, c_ptr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """What must not be written: a is an operand of a product, and summed in registers."""
    row, d = tl.arange(0, 64), tl.arange(0, 64)
    c = tl.zeros([64, 64], tl.float32)
    total = tl.zeros([64], tl.float32)
    for r in range(0, D, 64):
        a = tl.load(a_ptr + row[:, None] * D + r + d[None, :])
        b = tl.load(b_ptr + row[:, None] * D + r + d[None, :])
        c = tl.dot(a, tl.trans(b), c)
        total += tl.sum(a.to(tl.float32), 1)
    tl.store(c_ptr + row[:, None] * 64 + d[None, :], c + total[:, None])


def main() -> None:
    """One JSON object: by kernel, the number of products and the operands that are overwritten."""
    config = HALF[0]
    modules = {"outputs": sequence_chunks, "gradients": sequence_gradients}
    codes = {"mixed": intermediate_code(mixed_kernel, {"D": 512}, 3, {})}
    for kernel in ("states", "outputs", "state_gradients", "gradients"):
        jitted = getattr(modules.get(kernel, sequence_states), f"{kernel}_kernel")
        stages = getattr(config, kernel).stages
        codes[kernel] = intermediate_code(jitted, constants(kernel, config), stages, {})
        if kernel in modules:
            codes[f"{kernel}, float16"] = intermediate_code(
                jitted, constants(kernel, config), 1, {}, tokens="fp16"
            )
            codes[f"{kernel}, float16, pipelined"] = intermediate_code(
                jitted, constants(kernel, config), stages, {}, tokens="fp16"
            )
            values, blocks = constants(kernel, config, True), blocks_of(kernel, config, True)
            limit = {} if blocks.registers is None else {"maxnreg": blocks.registers}
            codes[f"{kernel}, described"] = intermediate_code(
                jitted, values, blocks.stages, descriptor_blocks(kernel, values), **limit
            )
    found = {
        name: (code.count("warp_group_dot "), overwritten_operands(code)) for name, code in codes.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
