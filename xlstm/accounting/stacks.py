"""What the stacks of arXiv:2405.04517 and the classic LSTM cost: parameters, FLOPs, bytes.

The paper gives no accounting, so the conventions are those of the other architectures: a multiply-add is two,
an elementary function one, norms, skips and look-ups are left out of training; inference counts them.
"""

from dataclasses import dataclass

from xlstm.accounting import cells
from xlstm.accounting.conventions import MixingMode, mixing_mode
from xlstm.config import LSTMConfig, XLSTMConfig

Stack = XLSTMConfig | LSTMConfig

SLSTM_GATES = 24
"""A channel and token of the sLSTM cell beside its recurrent product: 8 to add what comes in, 5 elementary
functions and 11 operations of the gates, the stabiliser, the memory and its normaliser."""
LSTM_GATES = 21
"""The same of the LSTM: two biases for each gate, 5 functions, 4 operations."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one kind of block: parameters, FLOPs of one token, numbers that stay in its state."""

    mixer: int
    """Parameters of the layer that mixes tokens."""
    ffn: int
    norms: int
    projections: float
    """FLOPs of the linear maps: into and out of the cell, gates, convolution."""
    ffn_flops: float
    elementwise: float
    norms_and_skips: float
    """Counted in inference: 3 a channel of a norm, 1 of a skip connection."""
    state: int
    """Numbers in fp32 that a sequence leaves behind."""
    inputs: int
    """Numbers in the dtype of the activations: what the convolution needs of the last tokens."""
    read_and_written: int
    """Numbers in and out of the layers, one token."""

    @property
    def around(self) -> float:
        """FLOPs of one token in inference but the cell's."""
        return self.projections + self.ffn_flops + self.elementwise + self.norms_and_skips


def block_kinds(config: Stack) -> list[tuple[int, Costs]]:
    """How many blocks of each kind there are, and what one costs."""
    if isinstance(config, LSTMConfig):
        return [(config.num_blocks, _lstm(config))]
    kinds = [(config.num_mlstm, _mlstm), (config.num_slstm, _slstm)]
    return [(count, costs(config)) for count, costs in kinds if count]


def mixing_flops(config: Stack, T: int, mode: MixingMode | None, causal_factor: float | None = None) -> float:
    """The cells of all blocks over a sequence. The LSTMs have one way to count, step by step."""
    if isinstance(config, LSTMConfig):
        mixing_mode(config, mode)
        d = config.d_model
        return config.num_blocks * T * (8 * d * d + LSTM_GATES * d)
    mode = mixing_mode(config, mode)
    total = 0.0
    if config.num_mlstm:
        width = config.mlstm_head_dim
        total += (
            config.num_mlstm
            * config.num_heads
            * cells.sequence(T, width, width, config.chunk_size, mode, causal_factor)
        )
        if not config.normaliser:
            total *= 2  # read at twice the length
    if config.num_slstm:
        d = config.d_model
        recurrent = 8 * d * config.slstm_head_dim if config.memory_mixing else 0
        total += config.num_slstm * T * (recurrent + SLSTM_GATES * d)
    return total


def _mlstm(config: XLSTMConfig) -> Costs:
    d, inner, heads, width = config.d_model, config.inner_dim, config.num_heads, config.mlstm_head_dim
    block_diagonal = 3 * inner * config.qkv_block
    gates = 2 * 3 * inner * heads
    conv = config.conv_width * inner
    products = 3 * d * inner + block_diagonal + gates + conv
    return Costs(
        # biases of the convolution and the gates, the norm of the heads, the skip
        mixer=products + inner + 2 * heads + 2 * inner,
        ffn=0,
        norms=d,
        projections=2 * products,
        ffn_flops=0,
        elementwise=5 * inner,  # SiLU of the convolution, skip (2), SiLU of the gate and its product
        norms_and_skips=4 * d + 3 * inner,
        state=heads * (width * width + width + 1),
        inputs=(config.conv_width - 1) * inner,
        read_and_written=2 * d + (d + 2 * inner) + 2 * inner + 3 * 2 * inner + (3 * inner + 2 * heads)
        + (3 * inner + 2 * heads + inner) + 6 * inner + (inner + d),
    )  # fmt: skip


def _slstm(config: XLSTMConfig) -> Costs:
    d, width, ffn = config.d_model, config.slstm_head_dim, config.ffn_dim
    conv, gates = config.conv_width * d, 4 * d * width
    recurrent = 4 * d * width if config.memory_mixing else 0
    return Costs(
        mixer=conv + d + gates + recurrent + 4 * d + d,
        ffn=3 * d * ffn,
        norms=2 * d,
        projections=2 * (conv + gates),
        ffn_flops=6 * d * ffn,
        elementwise=d + 2 * ffn,  # SiLU of the convolution, GELU and its product
        norms_and_skips=8 * d + 3 * d,
        state=4 * d,
        inputs=(config.conv_width - 1) * d,
        read_and_written=2 * d + 2 * d + 8 * d + 5 * d + 2 * d + 2 * d + 3 * (d + ffn),
    )


def _lstm(config: LSTMConfig) -> Costs:
    d = config.d_model
    return Costs(
        mixer=8 * d * d + 8 * d,
        ffn=0,
        norms=d,
        projections=8 * d * d,
        ffn_flops=0,
        elementwise=0,
        norms_and_skips=4 * d,
        state=2 * d,
        inputs=0,
        read_and_written=2 * d + 5 * d + 5 * d,
    )
