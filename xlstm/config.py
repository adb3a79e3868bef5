"""Model configurations: the shapes that determine a network. Light: no torch here."""

from dataclasses import dataclass
from typing import Any, Literal

from xlstm.arch_names import StackName, parse_stack


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


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """The classic LSTM as a language model: pre-norm LSTM layers with skip connections, untied embeddings."""

    arch: Literal["lstm"] = "lstm"
    vocab_size: int
    d_model: int
    num_blocks: int
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "d_model", "num_blocks")

    @property
    def num_heads(self) -> int:
        """One: all its channels mix."""
        return 1


@dataclass(frozen=True, kw_only=True)
class XLSTMConfig:
    """A stack of the residual blocks of arXiv:2405.04517: mLSTM blocks with pre and sLSTM blocks with post
    up-projection, untied embeddings.

    The last four fields are ablations. `arch` names them and which blocks are of which kind (`arch_names`).
    """

    arch: str
    vocab_size: int
    d_model: int
    num_blocks: int
    num_heads: int
    inner_dim: int
    """Width inside the mLSTM blocks, twice d_model in the paper; 0 where there are none."""
    ffn_dim: int
    """Hidden width of the gated feed-forward layer of sLSTM blocks, 4/3 d_model in the paper; 0 where there
    are none."""
    qkv_block: int = 4
    """Queries, keys and values of the mLSTM blocks are block-diagonal maps of so many channels each."""
    conv_width: int = 4
    chunk_size: int = 64
    """Chunk length of the mLSTM's chunkwise form. It enters the FLOP count and not the function computed."""
    norm_eps: float = 1e-5
    gating: Literal["exponential", "sigmoid"] = "exponential"
    """Of the input gates of both cells."""
    memory_mixing: bool = True
    """Recurrent weights of the sLSTM, block-diagonal over heads."""
    normaliser: bool = True
    """Divide what is read from the memory by the sum of its weights. Without, an sLSTM bounds it by tanh, as
    an LSTM does (with sigmoid gating it is one), and an mLSTM leaves it to the norm of its heads."""
    gate_bias_init: Literal["spread", "constant", "zero"] = "spread"
    """Forget gates that start from short to long memory, all with their mean, or at a half."""

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "d_model", "num_blocks", "num_heads", "qkv_block", "conv_width", "chunk_size"
        )
        named = self._stack
        if self.arch != named.text:
            raise ValueError(f"XLSTMConfig.arch = {self.arch!r}: its one name is {named.text!r}")
        for name, default in _SWITCH_DEFAULTS.items():
            if getattr(self, name) != named.switches.get(name, default):
                raise ValueError(
                    f"XLSTMConfig.{name} = {getattr(self, name)!r}: is not what {self.arch} says"
                )
        has_slstm = bool(self.slstm_at)
        has_mlstm = len(self.slstm_at) < self.num_blocks
        for name, there, kind in (("inner_dim", has_mlstm, "mLSTM"), ("ffn_dim", has_slstm, "sLSTM")):
            value = getattr(self, name)
            if value < 0 or (value > 0) != there:
                cure = "must be positive" if there else f"must be 0, {self.arch} has no {kind} blocks"
                raise ValueError(f"XLSTMConfig.{name} = {value}: {cure}")
        if has_mlstm and (self.inner_dim % self.num_heads or self.inner_dim % self.qkv_block):
            raise ValueError(
                f"XLSTMConfig: inner_dim = {self.inner_dim} must be a multiple of num_heads ="
                f" {self.num_heads} and of qkv_block = {self.qkv_block}"
            )
        if has_slstm and self.d_model % self.num_heads:
            raise ValueError(
                f"XLSTMConfig: d_model = {self.d_model} must be a multiple of num_heads = {self.num_heads}"
            )

    @property
    def _stack(self) -> StackName:
        return parse_stack(self.arch)

    @property
    def slstm_at(self) -> tuple[int, ...]:
        """Which blocks are sLSTM blocks, counted from 0; the others are mLSTM blocks."""
        return self._stack.slstm_at(self.num_blocks)

    @property
    def num_slstm(self) -> int:
        return len(self.slstm_at)

    @property
    def num_mlstm(self) -> int:
        return self.num_blocks - self.num_slstm

    @property
    def mlstm_head_dim(self) -> int:
        """Width of a query, key and value head of the mLSTM blocks."""
        return self.inner_dim // self.num_heads

    @property
    def slstm_head_dim(self) -> int:
        return self.d_model // self.num_heads


_SWITCH_DEFAULTS: dict[str, Any] = {
    name: XLSTMConfig.__dataclass_fields__[name].default
    for name in ("gating", "memory_mixing", "normaliser", "gate_bias_init")
}

ModelConfig = TransformerConfig | MLSTMConfig | LSTMConfig | XLSTMConfig


def config_class(arch: str) -> type[ModelConfig]:
    """The configuration of an architecture by its name. ValueError for what is none."""
    plain: dict[str, type[ModelConfig]] = {
        "transformer": TransformerConfig,
        "mlstm": MLSTMConfig,
        "lstm": LSTMConfig,
    }
    if arch not in plain:
        parse_stack(arch)
    return plain.get(arch, XLSTMConfig)
