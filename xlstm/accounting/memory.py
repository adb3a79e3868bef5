"""Bytes moved between memory and chip, and arithmetic intensity, by arXiv:2510.02228 (appendix).

Every layer reads its input and weights once and writes its output once; nothing stays on the chip between
layers. Attention reads and writes its operands once, as flash attention does; an mLSTM chunk moves its state.

One slip of the paper's code is avoided: it counts the weights of a Transformer once in 100 decode steps. Here
every step reads them ("every_step"); theirs is there by name ("paper").
"""

from dataclasses import dataclass

from xlstm.accounting.conventions import PAPER_GENERATED, DecodeAccounting
from xlstm.accounting.inference import decode_flops, prefill_flops
from xlstm.accounting.parameters import count_parameters, parameters_by_part
from xlstm.accounting.stacks import Stack, block_kinds
from xlstm.accounting.training import training_flops
from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, TransformerConfig, XLSTMConfig

BACKWARD_BYTES_FACTOR = 2
"""The backward pass of a map is two products, for its input and its weights, each like the forward one."""


@dataclass(frozen=True, kw_only=True)
class BytesPerElement:
    """Storage of the parts that a pass moves; the defaults are the paper's."""

    activations: int = 2
    """The cache of keys and values too."""
    weights: int = 2
    state: int = 4
    """C, n and m of the mLSTM, and what the cells of the other recurrent stacks keep."""


BYTES = BytesPerElement()


def state_bytes(
    config: ModelConfig,
    context_length: int,
    *,
    batch_size: int = 1,
    bytes_per: BytesPerElement = BYTES,
    num_kv_heads: int | None = None,
) -> int:
    """What a sequence leaves behind: keys and values of `context_length` tokens, or the states of recurrent
    layers and the inputs that their convolutions still need."""
    if isinstance(config, XLSTMConfig | LSTMConfig):
        kept = [
            count * (costs.state * bytes_per.state + costs.inputs * bytes_per.activations)
            for count, costs in block_kinds(config)
        ]
        return batch_size * sum(kept)
    rows = batch_size * config.num_blocks
    if isinstance(config, MLSTMConfig):
        return rows * config.num_heads * _state_elements(config) * bytes_per.state
    return rows * context_length * 2 * _kv_width(config, num_kv_heads) * bytes_per.activations


def prefill_bytes(
    config: ModelConfig,
    prompt_length: int,
    *,
    batch_size: int = 1,
    bytes_per: BytesPerElement = BYTES,
    num_kv_heads: int | None = None,
    all_logits: bool = False,
) -> int:
    """Bytes moved by a forward pass over a prompt, with the head for its last token or for `all_logits`.

    An mLSTM moves its state once a chunk, written and read.
    """
    d, V, b, T = config.d_model, config.vocab_size, bytes_per, prompt_length
    predicted = T if all_logits else 1
    if isinstance(config, XLSTMConfig | LSTMConfig):
        layers, mixing = _stack_elements(config), _stack_mixing_bytes(config, T, b)
    else:
        layers = config.num_blocks * _layer_elements(config, num_kv_heads)
        mixing = config.num_blocks * _mixing_bytes(config, T, b, num_kv_heads)
    moved = (T * layers + predicted * (2 * d + V) + T * d) * b.activations + mixing
    return _weights(config, num_kv_heads) * b.weights + batch_size * moved


def decode_bytes(
    config: ModelConfig,
    context_length: int,
    *,
    batch_size: int = 1,
    bytes_per: BytesPerElement = BYTES,
    num_kv_heads: int | None = None,
    accounting: DecodeAccounting = "every_step",
    generated: int = PAPER_GENERATED,
) -> float:
    """Bytes moved by one new token: weights once, activations, and the state read and written.

    Of the cache, the keys and values of `context_length` tokens are read and those of one are written. Under
    "paper" a Transformer reads its weights once in `generated` steps, and the mean cache of those steps.
    """
    d, V, b = config.d_model, config.vocab_size, bytes_per
    weights: float = _weights(config, num_kv_heads) * b.weights
    if isinstance(config, XLSTMConfig | LSTMConfig):
        state: float = 2 * state_bytes(config, 0, batch_size=batch_size, bytes_per=b)
        moved = (_stack_elements(config) + 2 * d + V + d) * b.activations
        return weights + state + batch_size * moved
    if isinstance(config, MLSTMConfig):
        state = 2 * state_bytes(config, 0, batch_size=batch_size, bytes_per=b)
        heads = config.num_heads * (2 * config.head_dim_qk + 2 * config.head_dim_v + 2)
    else:
        a_token = state_bytes(config, 1, batch_size=batch_size, bytes_per=b, num_kv_heads=num_kv_heads)
        state, heads = a_token * (context_length + 1), 0
        if accounting == "paper":
            weights, state = weights / generated, state + a_token * (generated - 1) / 2
    elements = config.num_blocks * (_layer_elements(config, num_kv_heads) + heads) + 2 * d + V + d
    return weights + state + batch_size * elements * b.activations


def training_bytes(
    config: ModelConfig, context_length: int, *, batch_size: int = 1, bytes_per: BytesPerElement = BYTES
) -> int:
    """Bytes moved by one training step, forward and backward, logits at every position.

    The backward pass counts as two forward passes, as in FLOPs; the optimiser's 16 bytes or so a parameter
    are not in it.
    """
    forward = prefill_bytes(
        config, context_length, batch_size=batch_size, bytes_per=bytes_per, all_logits=True
    )
    return (1 + BACKWARD_BYTES_FACTOR) * forward


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """A pass, as a roofline sees it."""

    flops: float
    bytes: float

    @property
    def ratio(self) -> float:
        """FLOPs a byte; above a machine's own ratio (H100: 295 in bf16) it is compute-bound."""
        return self.flops / self.bytes


def training_intensity(config: ModelConfig, context_length: int, *, batch_size: int = 1) -> Intensity:
    """One training step of `batch_size` sequences."""
    flops = training_flops(config, context_length, batch_size * context_length)
    return Intensity(flops=flops, bytes=training_bytes(config, context_length, batch_size=batch_size))


def prefill_intensity(config: ModelConfig, prompt_length: int, *, batch_size: int = 1) -> Intensity:
    """The prompts of a batch, up to their first new token."""
    return Intensity(
        flops=prefill_flops(config, prompt_length, batch_size=batch_size),
        bytes=prefill_bytes(config, prompt_length, batch_size=batch_size),
    )


def decode_intensity(
    config: ModelConfig,
    context_length: int,
    *,
    batch_size: int = 1,
    accounting: DecodeAccounting = "every_step",
) -> Intensity:
    """One new token for each sequence of a batch."""
    return Intensity(
        flops=decode_flops(config, context_length, batch_size=batch_size, accounting=accounting),
        bytes=decode_bytes(config, context_length, batch_size=batch_size, accounting=accounting),
    )


def _kv_width(config: MLSTMConfig | TransformerConfig, num_kv_heads: int | None) -> int:
    heads = config.num_heads if num_kv_heads is None else num_kv_heads
    return heads * (config.d_model // config.num_heads)


def _weights(config: ModelConfig, num_kv_heads: int | None) -> int:
    """Parameters that a pass reads: all but the embedding, of which it looks up a row a token."""
    all_heads = count_parameters(config) - parameters_by_part(config).embedding
    if not isinstance(config, TransformerConfig):
        return all_heads
    shared = config.d_model - _kv_width(config, num_kv_heads)
    return all_heads - config.num_blocks * 2 * config.d_model * shared


def _state_elements(config: MLSTMConfig) -> int:
    return config.head_dim_qk * config.head_dim_v + config.head_dim_qk + 1


def _layer_elements(config: MLSTMConfig | TransformerConfig, num_kv_heads: int | None) -> int:
    """Elements in and out of the layers of one block, one token, the sequence mixing left out."""
    d, n = config.d_model, config.num_heads
    around = 2 * d + 3 * (d + config.ffn_dim)
    if not isinstance(config, MLSTMConfig):
        return around + (d + d + 2 * _kv_width(config, num_kv_heads)) + 2 * d
    K, V = config.head_dim_qk, config.head_dim_v
    return around + d + n * (2 * K + V) + 2 * (d + n) + (d + n * V) + n * V + (d + n * V)


def _mixing_bytes(
    config: MLSTMConfig | TransformerConfig, T: int, b: BytesPerElement, num_kv_heads: int | None
) -> int:
    """Operands of attention, or of the mLSTM's chunks, of one block and one sequence."""
    if not isinstance(config, MLSTMConfig):
        return T * 2 * (config.d_model + _kv_width(config, num_kv_heads)) * b.activations
    K, V = config.head_dim_qk, config.head_dim_v
    chunks = -(-T // config.chunk_size)
    state = 2 * _state_elements(config) * b.state * chunks
    operands = T * ((K + V + 2) + (2 * K + V + 2) + V) * b.activations + T * 2 * b.state
    return config.num_heads * (state + operands)


def _stack_elements(config: Stack) -> int:
    """Elements in and out of the layers of all blocks, one token."""
    return sum(count * costs.read_and_written for count, costs in block_kinds(config))


def _stack_mixing_bytes(config: Stack, T: int, b: BytesPerElement) -> int:
    """The state of mLSTM cells once a chunk, written and read; an LSTM's or sLSTM's stays on the chip."""
    if isinstance(config, LSTMConfig) or not config.num_mlstm:
        return 0
    width = config.mlstm_head_dim
    state = 2 * (width * width + width + 1) * b.state * -(-T // config.chunk_size)
    return config.num_mlstm * config.num_heads * state
