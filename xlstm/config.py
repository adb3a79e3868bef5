"""Model configurations: the shapes that determine a network. Light: no torch here."""

from dataclasses import dataclass
from typing import Literal


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value <= 0:
            raise ValueError(f"{type(config).__name__}.{name} = {value}: must be positive")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A Llama-style decoder: RMSNorm, rotary positions, SwiGLU, no biases, untied embeddings."""

    arch: Literal["transformer"] = "transformer"
    vocab_size: int
    d_model: int
    num_blocks: int
    num_heads: int
    ffn_dim: int
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "d_model", "num_blocks", "num_heads", "ffn_dim")
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"TransformerConfig: d_model = {self.d_model} must be a multiple of 2 * num_heads"
                f" = {2 * self.num_heads}, rotary positions pair the channels of a head"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads


@dataclass(frozen=True, kw_only=True)
class MLSTMConfig:
    """The mLSTM language model of arXiv:2510.02228: mLSTM and SwiGLU layers, pre-norm, untied embeddings."""

    arch: Literal["mlstm"] = "mlstm"
    vocab_size: int
    d_model: int
    num_blocks: int
    num_heads: int
    ffn_dim: int
    head_dim_qk: int
    """Width of a query and key head; the paper takes half of `head_dim_v`."""
    chunk_size: int = 64
    """Chunk length of the chunkwise form. It enters the FLOP count and not the function computed."""
    gate_soft_cap: float = 15.0
    logit_soft_cap: float = 30.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "d_model", "num_blocks", "num_heads", "ffn_dim", "head_dim_qk", "chunk_size"
        )
        if self.d_model % self.num_heads:
            raise ValueError(
                f"MLSTMConfig: d_model = {self.d_model} must be a multiple of num_heads = {self.num_heads}"
            )

    @property
    def head_dim_v(self) -> int:
        return self.d_model // self.num_heads


ModelConfig = TransformerConfig | MLSTMConfig
