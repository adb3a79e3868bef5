"""Losses of rows of logits and, in their place, the gradients: the reference."""

import torch
from torch import Tensor


def rows_reference(
    logits: Tensor, targets: Tensor, losses: Tensor, soft_cap: float | None, want_gradient: bool
) -> Tensor:
    """Write the loss of each row into `losses` (T,); dloss/dlogits (T, V), in the dtype of `logits`.

    logits (T, V) before the cap, whose memory may be reused; what is returned without `want_gradient` says
    nothing.
    """
    z = logits.to(losses.dtype)
    if soft_cap is not None:
        z = soft_cap * torch.tanh(z / soft_cap)
    log_sum = z.logsumexp(-1, keepdim=True)
    at_target = targets[:, None]
    losses.copy_((log_sum - z.gather(-1, at_target)).squeeze(-1))
    if not want_gradient:
        return logits
    gradient = torch.exp(z - log_sum)
    gradient.scatter_add_(-1, at_target, gradient.new_full((), -1.0).expand(at_target.shape))
    if soft_cap is not None:
        gradient *= 1 - (z / soft_cap).square()
    return gradient.to(logits.dtype)
