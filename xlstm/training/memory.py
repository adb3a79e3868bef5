"""Memory of a training on a GPU, foretold, and the micro-batch that fits into it.

Bytes of activations are counted per token and block from what the backward pass reads, of compiled blocks
under bfloat16 autocast: the residual stream in float32, everything else in bfloat16. It is an estimate:
whoever runs out of memory nevertheless is tried again with half the micro-batch (`tasks.retries`). Light: no
torch here, so that a flow can ask.
"""

from xlstm.accounting import count_parameters
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.run_spec import RunSpec
from xlstm.training.execution import Execution

CONTEXT_BYTES = 1.5 * 2**30
"""CUDA's context, libraries' workspaces and kernels."""
STATE_BYTES = 16
"""A parameter: weight, gradient and two moments in float32."""
LOSS_CHUNK_BYTES = 2**29
"""Of logits at once: what `kernels.cross_entropy` holds."""
FILL = 0.92
"""Of the memory that there is; the rest is lost between blocks of the allocator."""


def predicted_bytes(spec: RunSpec, sequences: int, execution: Execution, shards: int = 1) -> float:
    """Peak memory of a training whose parts are `sequences` sequences; `execution` settled.

    `shards`: GPUs over which weights, gradients and moments are sharded.
    """
    config, tokens = spec.model, sequences * spec.context_length
    N, N_blocks = count_parameters(config), count_parameters(config, embedding=False)
    weights = STATE_BYTES * N / shards + (2 * N_blocks if spec.precision == "bf16" else 0)
    block = _block_bytes(config, execution) * (1 if spec.precision == "bf16" else 2)
    if execution.checkpoint_blocks:
        activations = config.num_blocks * 4 * config.d_model + block
    else:
        activations = config.num_blocks * block
    held = weights + tokens * activations + _loss_bytes(config, tokens, spec, execution)
    if execution.cuda_graph:  # what a recording holds serves nobody else: an evaluation has its own
        held += tokens * block + _logits_bytes(config, tokens, spec, execution)
    return CONTEXT_BYTES + held


def _block_bytes(config: ModelConfig, execution: Execution) -> float:
    """A token's, in one block."""
    d, ffn = config.d_model, getattr(config, "ffn_dim", 0) or 3 * config.d_model
    residuals, feed_forward = 8 * d, 2 * d + 6 * ffn
    if isinstance(config, TransformerConfig):
        mixer: float = 10 * d
    elif isinstance(config, MLSTMConfig):
        mixer = 16 * d + config.head_dim_qk * d / 32  # a state of 2 K V bytes every 64 tokens, each head
    else:
        mixer = 32 * d
    plain = 0 if execution.compile else 12 * d + 4 * ffn  # results that a compiler would compute again
    return residuals + mixer + feed_forward + plain


def _loss_bytes(config: ModelConfig, tokens: int, spec: RunSpec, execution: Execution) -> float:
    logits = _logits_bytes(config, tokens, spec, execution)
    if not execution.fused_loss:
        return logits
    V, d, width = config.vocab_size, config.d_model, _width(spec)
    return logits + 8 * V * d + tokens * d * (4 + width)


def _logits_bytes(config: ModelConfig, tokens: int, spec: RunSpec, execution: Execution) -> float:
    logits = tokens * config.vocab_size
    if not execution.fused_loss:
        return logits * (_width(spec) + 8.0)
    return 2.0 * min(logits * _width(spec), LOSS_CHUNK_BYTES)


def _width(spec: RunSpec) -> int:
    return 2 if spec.precision == "bf16" else 4


def fitting_micro_batch(
    spec: RunSpec, execution: Execution, limit_bytes: float, shards: int = 1
) -> int | None:
    """The most sequences at once, a divisor of the batch, that `limit_bytes` have room for; None for all.

    Of equal parts, so that one graph serves them all. 1 where not even one fits by the estimate.
    """
    for parts in range(1, spec.batch_size + 1):
        if spec.batch_size % parts:
            continue
        sequences = spec.batch_size // parts
        if predicted_bytes(spec, sequences, execution, shards) <= FILL * limit_bytes:
            return None if parts == 1 else sequences
    return 1 if spec.batch_size > 1 else None
