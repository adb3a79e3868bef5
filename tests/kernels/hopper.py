"""Kernels compiled for Hopper without a GPU, and what their machine code shows."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import triton

ROOT = Path(__file__).parents[2]
HOPPER = ("cuda", 90, 32)


def compiled(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    aligned: Collection[str],
    **options: Any,
) -> Any:
    """`types` of all parameters that are no constants; those `aligned` are divisible by 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=places, attrs=attributes)
    return triton.compile(source, target=triton.backends.compiler.GPUTarget(*HOPPER), options=options)


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, as many as are handed out, and its bytes of stack."""
    usage = disassemble(cubin, "-res-usage")
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    return -(-registers // 8) * 8, stack


def instructions(cubin: bytes) -> list[str]:
    """The machine code, a line each."""
    return [line for line in disassemble(cubin, "-sass").splitlines() if ";" in line]


def disassemble(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def found_by(module: str) -> Any:
    """What a module that compiles kernels prints, in a process of its own: the tests' has the interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
