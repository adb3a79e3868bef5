"""What a model costs, from its configuration: parameters, training FLOPs, FLOPs and bytes of a decode step.

The formulas are those of *xLSTM Scaling Laws* (arXiv:2510.02228, appendix), so that our budgets are theirs.
Nothing here imports torch.
"""

from xlstm.accounting.inference import BytesPerElement, decode_bytes, decode_flops, state_bytes
from xlstm.accounting.parameters import ParameterCount, count_parameters, parameters_by_part
from xlstm.accounting.shapes import ffn_width, mlstm_config, transformer_config
from xlstm.accounting.training import ForwardFlops, MixingMode, forward_flops, training_flops

__all__ = [
    "BytesPerElement",
    "ForwardFlops",
    "MixingMode",
    "ParameterCount",
    "count_parameters",
    "decode_bytes",
    "decode_flops",
    "ffn_width",
    "forward_flops",
    "mlstm_config",
    "parameters_by_part",
    "state_bytes",
    "training_flops",
    "transformer_config",
]
