"""Prompts to their continuations: the loop around a session."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlstm.generation.prompts import Prompts, read_prompts
from xlstm.generation.sampling import GREEDY, Sampling, choose
from xlstm.generation.session import Session
from xlstm.models import LanguageModel

ASK_EVERY = 16
"""Steps between two questions to a GPU whether all sequences have stopped; the steps beyond are dropped."""


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after one prompt."""

    tokens: list[int]
    """The stop token not among them."""
    stopped_by: int | None
    """The stop token that ended it; None where the number of tokens did."""


def generate(
    model: LanguageModel,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
    stop: Collection[int] | Sequence[Collection[int]] = (),
    state_dtype: torch.dtype = torch.float32,
    session: Session | None = None,
) -> list[Continuation]:
    """Continue each of B prompts, of any lengths, by at most `max_new_tokens` tokens.

    `stop` are tokens that end a sequence, for all or as one collection a prompt. The same seed, prompts and
    device give the same texts; without one, torch's own generator goes on. A `session` of the same batch size
    that is given is used as it stands, and can go on afterwards: it has read all tokens but the last.

    Raises:
        PromptError, MemoryLimitError: before anything is computed.
    """
    prompts = read_prompts(prompts, model.config.vocab_size, model.embedding.weight.device)
    stops = _stop_sets(stop, len(prompts), model.config.vocab_size)
    if session is None:
        longest = max(len(prompt) for prompt in prompts)
        session = Session(model, len(prompts), max(1, longest + max_new_tokens), state_dtype=state_dtype)
    ends = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool)
    for row, tokens in zip(ends, stops, strict=True):
        row[list(tokens)] = True
    ends = ends.to(session.device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=session.device)
    ask_every = 1 if session.device.type == "cpu" else ASK_EVERY
    chosen: list[Tensor] = []
    for token in stream(session, prompts, max_new_tokens, sampling=sampling, seed=seed):
        chosen.append(token)
        if any(stops):
            done |= ends.gather(1, token[:, None]).squeeze(1)
            if len(chosen) % ask_every == 0 and bool(done.all()):
                break
    rows = torch.stack(chosen, 1).tolist() if chosen else [[] for _ in prompts]
    return [_cut(row, tokens) for row, tokens in zip(rows, stops, strict=True)]


@torch.no_grad()
def stream(
    session: Session,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
) -> Iterator[Tensor]:
    """Tokens (B,) one after the other, as they are chosen; a consumer that has enough closes the iterator."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: must not be negative")
    if len(prompts) and max_new_tokens:
        session.reserve(max(len(prompt) for prompt in prompts) + max_new_tokens - 1)
    generator = None if seed is None else torch.Generator(session.device).manual_seed(seed)
    session.prefill(prompts)
    for number in range(max_new_tokens):
        if number:
            session.step()
        if not sampling.greedy:
            session.tokens.copy_(choose(session.logits, sampling, generator))
        yield session.tokens.clone()


def _stop_sets(
    stop: Collection[int] | Sequence[Collection[int]], count: int, vocab_size: int
) -> list[frozenset[int]]:
    """The stop tokens of each prompt."""
    each = [frozenset(tokens) for tokens in stop if not isinstance(tokens, int)]
    if each and len(each) != count:
        raise ValueError(
            f"stop has {len(each)} collections for {count} prompts: give one each, or one for all"
        )
    sets = each or [frozenset(token for token in stop if isinstance(token, int))] * count
    for token in frozenset().union(*sets):
        if not 0 <= token < vocab_size:
            raise ValueError(f"stop token {token} is not in the model's vocabulary of {vocab_size}")
    return sets


def _cut(tokens: list[int], stop: frozenset[int]) -> Continuation:
    end = next((place for place, token in enumerate(tokens) if token in stop), None)
    if end is None:
        return Continuation(tokens=tokens, stopped_by=None)
    return Continuation(tokens=tokens[:end], stopped_by=tokens[end])
