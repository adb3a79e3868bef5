"""Text from a model, token by token, from a state of constant size or from cached keys and values."""

import torch
from torch import Tensor

from xlstm.models import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    num_tokens: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts (B, S), S at least 1, by `num_tokens` tokens: (B, num_tokens).

    Temperature 0 takes the likeliest token, 1 samples from the model.
    """
    if prompt.shape[-1] < 1:
        raise ValueError("prompt is empty: give at least one token")
    if temperature < 0:
        raise ValueError(f"temperature = {temperature}: must not be negative")
    logits, state = model.extend(prompt)
    tokens: list[Tensor] = []
    while len(tokens) < num_tokens:
        if tokens:
            logits, state = model.extend(tokens[-1], state)
        tokens.append(_choose(logits[:, -1].float(), temperature, generator))
    return torch.cat(tokens, 1) if tokens else prompt[:, :0]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(B, vocabulary) to (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
