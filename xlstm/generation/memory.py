"""What generation will take, before it takes it: a prompt that does not fit is refused in a sentence."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.models import LanguageModel

CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use and reclaimable use of a container, versions 2 and 1 of the interface."""
CHUNK = 64
"""Tokens to a chunk state that the mLSTM kernels may write, in float32."""

TOKEN_IDS = 4 * 8
"""Of a token: the prompt as it came together, its piece, its place there and in the batch, in int64."""
UNSPLIT, LIVE_BLOCKS = 2**20, 12
"""Torch's allocator hands a block out whole where no more than UNSPLIT bytes of it would be left, so each of
the tensors of a piece that are alive at once may take that much more than it has."""


class MemoryLimitError(ValueError):
    """A prompt, a batch or a cache that is larger than the memory."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a session takes beside the model's weights."""

    state: int
    """C, n and m, or keys and values: kept from the first token to the last. Exact."""
    prefill: int
    """Activations of the largest piece of a prompt, at the layer that has most of them alive. An estimate."""

    @property
    def total(self) -> int:
        return self.state + self.prefill


def footprint(
    model: LanguageModel,
    *,
    batch_size: int,
    capacity: int,
    prompt_length: int,
    state_dtype: torch.dtype = torch.float32,
    prefill_tokens: int,
) -> Footprint:
    """Of a session with room for `capacity` tokens a sequence and prompts of up to `prompt_length`."""
    state = model.new_state(batch_size, capacity, state_dtype, device=torch.device("meta"))
    piece = min(prompt_length, max(1, prefill_tokens // batch_size))
    width = model.lm_head.weight.itemsize
    on_gpu = model.embedding.weight.is_cuda
    packed = on_gpu and width <= 4 and isinstance(model.config, MLSTMConfig | TransformerConfig)
    prefill = batch_size * piece * (activation_bytes(model.config, width, packed=packed) + TOKEN_IDS)
    if on_gpu:
        prefill += LIVE_BLOCKS * UNSPLIT
    if piece < prompt_length and isinstance(model.config, TransformerConfig) and not on_gpu:
        prefill += piece * prompt_length  # the mask of a piece that has others before it
    logits = batch_size * model.config.vocab_size * (2 * 4 + width)
    return Footprint(state=state.nbytes, prefill=prefill + logits)


def activation_bytes(config: ModelConfig, width: int, *, packed: bool) -> int:
    """Of one token, `width` bytes an element: the larger of a block's halves, and what lives through both.

    Layer by layer that is the residual stream, and norms in float32. Packed (`xlstm.generation.packed`) it is
    the stream and the change to it, before the block and behind its first half, and the norm; in the second
    half also what the output map was of, in the first the cell's gates and their sums; through all blocks a
    Transformer's angles. The chunkwise kernels hold operands, output and one state in CHUNK tokens.
    """
    d = config.d_model
    ffn = 3 * getattr(config, "ffn_dim", d) * width
    mixing = (6 if packed else 5) * d * width
    angles = 0
    if isinstance(config, MLSTMConfig):
        state = config.num_heads * config.head_dim_qk * config.head_dim_v * 4 // CHUNK
        mixing = (2 * config.num_heads * config.head_dim_qk + 4 * d) * width + state
    if not packed:
        return 2 * d * width + 2 * 4 * d + max(ffn, mixing)
    if isinstance(config, TransformerConfig):
        angles = 2 * 4 * (config.head_dim // 2)
    return angles + max(7 * d * width + ffn, 5 * d * width + mixing)


def available_bytes(device: torch.device) -> int:
    """What this process can still have: free on the GPU and what torch holds in reserve there; or memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    for folder, limit, used, reclaimable in CGROUPS:
        try:
            most = int((folder / limit).read_text())
            kept = int((folder / used).read_text())
            statistics = (folder / "memory.stat").read_text().split()
        except (OSError, ValueError):  # no container, or one without a limit
            continue
        kept -= int(statistics[statistics.index(reclaimable) + 1])
        free = min(free, most - kept)
    return free


def refuse_what_does_not_fit(needed: Footprint, device: torch.device, asked: str) -> None:
    """MemoryLimitError where the device has less than that free; `asked` says for what it is."""
    available = available_bytes(device)
    if needed.total > available:
        raise MemoryLimitError(
            f"{asked} need about {_size(needed.total)} ({_size(needed.state)} state, {_size(needed.prefill)}"
            f" to read the prompt) and {device} has {_size(available)} free: shorten the prompt, or ask for"
            " fewer tokens or sequences"
        )


def _size(count: int) -> str:
    unit = next((j for j in (3, 2, 1) if count >= 2 ** (10 * j)), 0)
    return f"{count / 2 ** (10 * unit):.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
