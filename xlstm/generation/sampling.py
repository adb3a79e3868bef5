"""How the next token is chosen from logits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature first, then the `top_k` likeliest, then the fewest that hold `top_p` of what is left."""

    temperature: float = 1.0
    """0 takes the likeliest token; 1 samples from the model."""
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature}: must be 0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling(temperature=0)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Of each token, (..., vocabulary); with temperature above 0. Never waits for the device."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        best, places = logits.topk(sampling.top_k, -1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, places, best)
    # From the likeliest down: next to no temperature takes others to minus infinity, and none to infinity.
    below = logits - logits.amax(-1, keepdim=True)
    scaled = below / max(sampling.temperature, torch.finfo(logits.dtype).tiny)
    chances = scaled.softmax(-1)
    if sampling.top_p is None or sampling.top_p == 1:
        return chances
    places = logits.argsort(dim=-1, descending=True, stable=True)
    ordered = chances.gather(-1, places)
    # A token stays where those before it hold less than top_p: the likeliest always does.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= sampling.top_p, 0.0)
    kept = torch.zeros_like(chances).scatter(-1, places, ordered)
    return kept / kept.sum(-1, keepdim=True)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Tokens (B,) of logits (B, vocabulary).

    A race: an exponential time a token, at the rate of its probability; the first one wins. As
    torch.multinomial draws, which waits for the device to look at its arguments.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    chances = probabilities(logits, sampling)
    times = torch.empty_like(chances).exponential_(generator=generator)
    return (chances / times.clamp_min(torch.finfo(times.dtype).tiny)).argmax(-1)
