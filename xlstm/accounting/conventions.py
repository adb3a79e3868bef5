"""The named ways to count: what a table or a report must say beside a number of FLOPs or bytes.

All are those of *xLSTM Scaling Laws* (arXiv:2510.02228, appendix, and the authors' code), or ours where
theirs slip; a multiply-add is two, an elementary function (exp, log, sigmoid, max, abs, mask) one.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, XLSTMConfig

AttentionMode = Literal["distill_scaling", "chinchilla"]
CellMode = Literal["first", "tfla", "recurrent", "parallel"]
MixingMode = Literal["distill_scaling", "chinchilla", "first", "tfla", "recurrent", "parallel"]
"""How the sequence mixing is counted, forward.

Attention: "distill_scaling" (default) the causal half, "chinchilla" all T^2. mLSTM: "first" (default) and
"tfla", two counts of the chunkwise form, within 6e-5 of each other over the models of the paper; "recurrent",
step by step, as in decoding; "parallel", the quadratic form. Of a stack with sLSTM blocks they count the
mLSTM cells; an sLSTM or LSTM is counted step by step.
"""

BackwardMode = Literal["twice_forward", "mixing_2.5_forward", "tfla"]
"""How the backward pass is counted. The linear maps count twice their forward pass under each.

"twice_forward" (default): so does the mixing. "mixing_2.5_forward": the mixing counts 2.5 times, since its
products are computed again. "tfla": the backward kernels of the mLSTM, term by term.
"""

DecodeAccounting = Literal["every_step", "paper"]
"""What a step of generation is charged.

"every_step" (default): the weights are read in each step, and attention is over all that came before.
"paper": the authors' code, which spreads one reading of the weights over the generated tokens, scales
attention by the causal factor of prefill, and charges the prompt's FLOPs to the generated tokens.
"""

BACKWARD_FACTOR = 2
BACKWARD_MIXING_FACTOR = 2.5
TFLA_CAUSAL_FACTOR = 0.75
"""Share of an L x L matrix that the "tfla" count takes as computed where L exceeds a tile of 64."""
TILE = 64
PREFILL_CAUSAL_FACTOR = 0.65
"""Share of the T x T matrix of attention that prefill computes: flash attention rounds the diagonal up."""
PAPER_GENERATED = 100
"""Tokens over which the authors spread the weights."""


@dataclass(frozen=True, kw_only=True)
class FlopConvention:
    """One complete way to count the training FLOPs of an architecture; `name` is what tables carry."""

    mixing: MixingMode
    backward: BackwardMode = "twice_forward"

    @property
    def name(self) -> str:
        """The mixing mode alone under the default backward count."""
        return self.mixing if self.backward == "twice_forward" else f"{self.mixing}, backward {self.backward}"


def mixing_mode(config: ModelConfig, mode: MixingMode | None) -> MixingMode:
    """The mode that counts for an architecture: its default for None. ValueError for one of the other."""
    known: tuple[str, ...]
    if isinstance(config, MLSTMConfig | XLSTMConfig):
        known, what = get_args(CellMode), "an mLSTM" if config.arch == "mlstm" else f"an {config.arch}"
    elif isinstance(config, LSTMConfig):
        known, what = ("recurrent",), "an LSTM"
    else:
        known, what = get_args(AttentionMode), "a Transformer"
    if mode is None:
        return cast("MixingMode", known[0])
    if mode not in known:
        options = " or ".join(f'"{name}"' for name in known[:2])
        more = "".join(f', "{name}"' for name in known[2:])
        raise ValueError(f"mode = {mode!r}: {what} is counted by {options}{more}")
    return mode


def flop_convention(
    config: ModelConfig, mode: MixingMode | None = None, backward: BackwardMode = "twice_forward"
) -> FlopConvention:
    """The convention under which `training_flops` of the same arguments counts."""
    return FlopConvention(mixing=mixing_mode(config, mode), backward=backward)
