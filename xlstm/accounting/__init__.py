"""What a model costs, from its configuration: parameters, FLOPs and bytes of training, prefill and decoding.

The formulas are those of *xLSTM Scaling Laws* (arXiv:2510.02228, appendix), so that our budgets are theirs;
each way to count has a name (`conventions`). Nothing here imports torch.
"""

from xlstm.accounting.conventions import (
    BackwardMode,
    DecodeAccounting,
    FlopConvention,
    MixingMode,
    flop_convention,
)
from xlstm.accounting.inference import decode_flops, prefill_flops
from xlstm.accounting.memory import (
    BytesPerElement,
    Intensity,
    decode_bytes,
    decode_intensity,
    prefill_bytes,
    prefill_intensity,
    state_bytes,
    training_bytes,
    training_intensity,
)
from xlstm.accounting.parameters import ParameterCount, count_parameters, parameters_by_part
from xlstm.accounting.shapes import (
    FFN_FACTOR,
    build_config,
    ffn_width,
    mlstm_config,
    transformer_config,
    xlstm_config,
)
from xlstm.accounting.training import ForwardFlops, backward_flops, forward_flops, training_flops

__all__ = [
    "FFN_FACTOR",
    "BackwardMode",
    "BytesPerElement",
    "DecodeAccounting",
    "FlopConvention",
    "ForwardFlops",
    "Intensity",
    "MixingMode",
    "ParameterCount",
    "backward_flops",
    "build_config",
    "count_parameters",
    "decode_bytes",
    "decode_flops",
    "decode_intensity",
    "ffn_width",
    "flop_convention",
    "forward_flops",
    "mlstm_config",
    "parameters_by_part",
    "prefill_bytes",
    "prefill_flops",
    "prefill_intensity",
    "state_bytes",
    "training_bytes",
    "training_flops",
    "training_intensity",
    "transformer_config",
    "xlstm_config",
]
