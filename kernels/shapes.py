"""Shapes of tensors checked, before a kernel reads past them."""

from collections.abc import Sequence

from torch import Tensor


def expect_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """ValueError, by name, where a tensor that is there has another shape."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: must be {tuple(shape)}")
