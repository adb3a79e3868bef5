"""Which decode steps are a chain of our maps, and which have the library's matrix products.

The maps (`kernels.linear.skinny_linear`) are fewer kernels, and the library's use the arithmetic better: the
more sequences, the less a kernel more costs. Measured on an H100 (docs/inference.md). Light: the runtime
model, which imports no torch, asks too.
"""

FEW = 8
"""Sequences of a chain at most."""
