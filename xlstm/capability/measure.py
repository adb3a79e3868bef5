"""What a trained model does on the measured sets: accuracy and loss an answer, in all or by position."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.capability.material import Material, MixedText
from xlstm.capability.task import IGNORED, Examples

TOKENS_AT_ONCE = 16_384


@torch.no_grad()
def measure(
    model: nn.Module,
    material: Material,
    device: torch.device,
    *,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Every measurement of a run by name.

    `loss` and `accuracy` are of the held-out set at the trained level. Generated tasks add `accuracy/LEVEL`
    and `answer_loss/LEVEL`; text adds `domain_loss/NAME` and, by position, `position_loss/END`: the mean over
    the positions behind the band before, up to END. Losses are in nats an answer or token. `alive` is called
    after every batch.
    """
    model.eval()
    of_text = isinstance(material, MixedText)
    loss, right = _answers(model, material.held_out(), device, context, alive)
    found = {"loss": _mean(loss), "accuracy": _mean(right)}
    for name, examples, bands in material.measured():
        loss, right = _answers(model, examples, device, context, alive)
        if bands:
            for start, end in zip((0, *bands), bands, strict=False):
                found[f"position_loss/{end}"] = _mean(loss[:, start:end])
        elif of_text:
            found[f"domain_loss/{name}"] = _mean(loss)
        else:
            found[f"answer_loss/{name}"] = _mean(loss)
            found[f"accuracy/{name}"] = _mean(right)
    model.train()
    return found


def _answers(
    model: nn.Module,
    examples: Examples,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
    alive: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Loss in nats and whether the likeliest token is right, (count, length) float64, NaN where none is
    asked."""
    inputs, targets = (torch.from_numpy(part) for part in examples)
    losses, rights = [], []
    size = max(1, TOKENS_AT_ONCE // inputs.shape[1])
    for tokens, answers in zip(inputs.split(size), targets.split(size), strict=True):
        answers = answers.to(device)
        with context():
            logits = model(tokens.to(device))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), reduction="none")
        right = (logits.argmax(-1) == answers).double()
        asked = answers != IGNORED
        losses.append(torch.where(asked, loss.view_as(answers).double(), torch.nan).cpu())
        rights.append(torch.where(asked, right, torch.nan).cpu())
        alive()
    return torch.cat(losses), torch.cat(rights)


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
