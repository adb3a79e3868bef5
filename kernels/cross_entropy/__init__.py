"""The loss of a language model from the hidden states: head and cross-entropy in one, without the logits."""

from kernels.cross_entropy.linear import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
