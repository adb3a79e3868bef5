"""Kernel launches that spend little of the host's time.

At every call Triton binds arguments to parameters by name, derives what the compiled code may assume of each,
and looks it up: 15 us, which is more than the small problems' kernels run. Here the compiled kernel is kept
by what those assumptions depend on.
"""

from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

Strides = tuple[int, int, int]
"""Of batch, time and head."""

_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
"""The kernel, and the constants, which are passed after what varies. By id: Triton's functions are long to
hash, and those that are called here live as long as their modules."""

MANY = 4096
"""Kernels are kept for every length seen; more than this are not kept, and found by Triton."""


def strides(x: Tensor) -> Strides:
    """That of a batch of one is never used and may be anything."""
    batch, time, head = x.stride()[:3]
    return (batch if x.shape[0] > 1 else 0), time, head


def describable(*tensors: Tensor) -> bool:
    """Whether Hopper's copy engine can find blocks of these (B, S, H, D): 16 bytes divide every address."""
    return all(
        x.stride(-1) == 1 and x.data_ptr() % 16 == 0
        and all(step > 0 and step * x.itemsize % 16 == 0 for step in x.stride()[:-1])
        for x in tensors
    )  # fmt: skip


def describe(x: Tensor, tokens: int, channels: int) -> Any:
    """For blocks of a (B, S, H, D), of one head; what is outside reads as 0."""
    B, S, H, D = x.shape
    batch, time, head, _ = x.stride()
    return TensorDescriptor(x, [B, H, S, D], [batch, head, time, 1], [1, 1, tokens, channels])


def describe_states(C: Tensor, rows: int, columns: int) -> Any:
    """For blocks of states (chunks, H, KP, VP), all rows below each other."""
    width = C.shape[-1]
    return TensorDescriptor(C, [C.numel() // width, width], [width, 1], [rows, columns])


def call(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[Any, ...],
    descriptors: tuple[Any, ...] = (),
    **constants: Any,
) -> None:
    """Launches `kernel` on the current device, the first tensor's. Its parameters must be these descriptors,
    tensors and numbers, and compile-time constants, in this order. Which tensors are None, and which blocks
    descriptors have, must follow from the constants."""
    first = tensors[0]
    assert first is not None
    pointers, dtypes = 0, []
    for x in tensors:
        if x is not None:
            pointers |= x.data_ptr()
            dtypes.append(x.dtype)
    key = (id(kernel), first.get_device(), pointers & 15, *dtypes, *numbers, *constants.values())
    known = _compiled.get(key)
    if known is not None:
        compiled, rest = known
        compiled[programs, 1, 1](*descriptors, *tensors, *numbers, *rest)
        return
    compiled = kernel[(programs,)](*descriptors, *tensors, *numbers, **constants)
    if isinstance(compiled, _compiled_type()) and pointers & 15 == 0 and len(_compiled) < MANY:
        given = len(descriptors) + len(tensors) + len(numbers)
        _compiled[key] = compiled, tuple(constants[name] for name in kernel.arg_names[given:])


def _compiled_type() -> type:
    from triton.compiler import CompiledKernel

    return CompiledKernel  # type: ignore[no-any-return]
