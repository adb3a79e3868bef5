"""What it costs to serve an architecture: decode FLOPs a token as a function of N, from its own shapes."""

from collections.abc import Sequence

import numpy as np

from sweeps.laws.flop_curves import per_token_curve
from sweeps.laws.inference_cost import ServingCost, decode_cost
from xlstm.accounting import count_parameters, decode_flops
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
