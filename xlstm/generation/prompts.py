"""Prompts as they come: a batch of one length, or sequences of any lengths."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xlstm.models.decoding import Layout, lay_out

Prompts = Tensor | Sequence[Tensor | Sequence[int]]
"""(B, S), or B sequences of token ids."""


class PromptError(ValueError):
    """A prompt that the model cannot read."""


def read_prompts(prompts: Prompts, vocab_size: int, device: torch.device) -> list[Tensor]:
    """The prompts as (S,) int64 tensors on the device.

    Raises:
        PromptError: no prompt, an empty one, or a token that the vocabulary lacks.
    """
    rows = [torch.as_tensor(row) for row in prompts]
    if not rows:
        raise PromptError("there is no prompt: give at least one")
    for j, row in enumerate(rows):
        if row.ndim != 1 or row.numel() == 0:
            shape = f"has shape {tuple(row.shape)}" if row.ndim != 1 else "is empty"
            raise PromptError(f"prompt {j} {shape}: give a sequence of at least one token")
        if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
            raise PromptError(f"prompt {j} is {row.dtype}: token ids are integers")
    joined = torch.cat([row.to(device, torch.int64) for row in rows])
    low, high = joined.aminmax()
    if low < 0 or high >= vocab_size:
        wrong = int(low) if low < 0 else int(high)
        raise PromptError(f"token {wrong} is not in the model's vocabulary of {vocab_size}: other tokenizer?")
    return list(joined.split([row.numel() for row in rows]))


def pieces(prompts: Sequence[Tensor], starts: Sequence[int], longest: int) -> Iterator[tuple[Tensor, Layout]]:
    """The prompts in pieces of at most `longest` tokens a sequence: tokens and their layout.

    A sequence that has ended takes no part in later pieces.
    """
    for begin in range(0, max(len(prompt) for prompt in prompts), longest):
        rows = [j for j, prompt in enumerate(prompts) if len(prompt) > begin]
        parts = [prompts[j][begin : begin + longest] for j in rows]
        layout = lay_out(
            [starts[j] + begin for j in rows],
            [len(part) for part in parts],
            prompts[0].device,
            None if len(rows) == len(prompts) else rows,
        )
        tokens = torch.stack(parts) if layout.cu_seqlens is None else torch.cat(parts)[None]
        yield tokens, layout
