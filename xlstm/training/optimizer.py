"""The learning-rate schedule as a function of the step, and AdamW on the right parameters."""

import math

import torch
from torch import Tensor, nn

from xlstm.run_spec import OptimizerSpec

NORM_EPS = 1e-6
"""Added to the norm of the gradients by torch's clipping, and here."""


def learning_rate(step: int, steps: int, spec: OptimizerSpec) -> float:
    """Rate of update `step` in 0..steps-1 (arXiv:2510.02228, appendix).

    Linear warm-up that reaches the peak with its last update; cosine from the peak to `cosine_floor` of it,
    or (`wsd`) the peak throughout; linear cool-down that would reach zero one update after the last.
    """
    if step < spec.warmup_steps:
        return spec.peak_lr * (step + 1) / spec.warmup_steps
    floor = spec.peak_lr * (spec.cosine_floor if spec.schedule == "cosine" else 1.0)
    cooldown_start = steps - spec.cooldown_steps
    if step >= cooldown_start:
        start = floor if cooldown_start > spec.warmup_steps else spec.peak_lr
        return start * (steps - step) / (spec.cooldown_steps + 1)
    progress = (step - spec.warmup_steps) / (cooldown_start - spec.warmup_steps)
    return floor + (spec.peak_lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(model: nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """Fused AdamW. Weight decay acts on the matrices of linear maps.

    Norms, biases, gate biases and the embedding table are not decayed: the paper decays parameters named
    `kernel` alone (arXiv:2510.02228, released configurations).
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": spec.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.peak_lr,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        # One kernel a step on a GPU; on a CPU it takes 0.7 ms off each.
        fused=True,
    )


def clip_in_step(optimizer: torch.optim.AdamW, norm: Tensor, limit: float) -> None:
    """Have the step that follows scale the gradients to a global norm of `limit` at most; `norm`: theirs.

    As `clip_grad_norm_` does by a pass over all gradients of its own. Fused AdamW takes a number, on their
    device, by which it divides the gradients as it reads them, and leaves the quotients in their place: meant
    for a loss that was scaled up (torch.amp.GradScaler), and of use to any. No synchronisation.
    """
    optimizer.grad_scale = ((norm + NORM_EPS) / limit).clamp(min=1.0).float()  # type: ignore[attr-defined]
