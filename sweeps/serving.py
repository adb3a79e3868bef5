"""What it costs to serve an architecture: decode FLOPs a token as a function of N, from its own shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.laws.flop_curves import per_token_curve
from sweeps.laws.inference_cost import ServingCost, decode_cost
from xlstm.accounting import count_parameters, decode_flops, state_bytes
from xlstm.config import ModelConfig


def serving_cost(
    configs: Sequence[ModelConfig], tokens: float, *, prompt_length: int, generated_length: int
) -> ServingCost:
    """FLOPs of generating `tokens` tokens in answers of one length after prompts of one length.

    Each answer token is counted at the architecture's own cost at the middle of the answer (attention pays
    for every token before it, an mLSTM does not), each prompt token at the same rule halfway through the
    prompt. Costs between the sizes of `configs`, and beyond them, follow `per_token_curve`.
    """
    N = np.array([count_parameters(config) for config in configs], dtype=float)
    middle = prompt_length + generated_length // 2
    answer = np.array([decode_flops(config, middle) for config in configs])
    prompt = np.array([decode_flops(config, prompt_length // 2) for config in configs])
    return decode_cost(per_token_curve(N, answer + prompt * prompt_length / generated_length), tokens)


@dataclass(frozen=True, kw_only=True)
class DecodeTerms:
    """A decode step of each size as fixed + per_seen x (tokens seen before), in FLOPs; arrays (sizes,)."""

    N: np.ndarray
    fixed: np.ndarray
    per_seen: np.ndarray
    """What attention pays for each token in its cache; 0 for an mLSTM."""


def decode_terms(configs: Sequence[ModelConfig]) -> DecodeTerms:
    """The two terms of `decode_flops`, which is a straight line in the context, ascending in N."""
    ordered = sorted(configs, key=count_parameters)
    first, second = (np.array([decode_flops(config, seen) for config in ordered], float) for seen in (0, 1))
    N = np.array([count_parameters(config) for config in ordered], dtype=float)
    return DecodeTerms(N=N, fixed=first, per_seen=second - first)


def decode_profile(config: ModelConfig, seen: Sequence[int]) -> tuple[list[float], list[int]]:
    """FLOPs of one more token, and bytes of the sequence's state, after each number of tokens in `seen`."""
    return [decode_flops(config, tokens) for tokens in seen], [state_bytes(config, tokens) for tokens in seen]
