"""Which decode steps are a chain of our maps, and which have the library's matrix products.

The maps (`kernels.linear.skinny_linear`) are fewer kernels, and the library's use the arithmetic better: the
more sequences and the wider the model, the less a kernel more costs. Measured on an H100 (docs/inference.md).
Light: the runtime model, which imports no torch, asks too.
"""

FEW, FEW_NARROW, NARROW = 8, 16, 1024
"""Sequences of a chain at most, and of models of at most NARROW channels. Of wider ones 2048 was measured."""


def most_chained(d_model: int) -> int:
    """Sequences up to which a step of a model of this width is a chain of maps."""
    return FEW_NARROW if d_model <= NARROW else FEW
