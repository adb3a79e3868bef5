"""A decode step on a GPU in few kernels: weights that read the same input lie together, and parts are fused.

The step of `LanguageModel.step` goes layer by layer, some 25 kernels a block. Here a block of one sequence is
four maps (`kernels.linear`) and its sequence mixing; of more sequences, four matrix products, with norm,
SwiGLU and rotation in one kernel each. It computes the same, rounding included, up to the order of sums.

The model's own weights become views of the packed ones: nothing is held twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention_step
from kernels.linear import add_norm, rotate_pairs, skinny_linear, swiglu
from kernels.mlstm.decode import mlstm_step
from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.models import LanguageModel
from xlstm.models.decoding import BlockState, DecodingState
from xlstm.models.layers import SwiGLU
from xlstm.models.mlstm import MLSTMBlock
from xlstm.models.transformer import TransformerBlock, rotation

FEW = 2
"""Sequences up to which each reads the weights for itself, from the cache of the chip all but the first."""

Step = Callable[[Tensor, DecodingState], Tensor]


def packed_step(model: LanguageModel, batch_size: int, backend: str | None = None) -> Step | None:
    """The step of a model for so many sequences: tokens (B,) and state to logits, as `LanguageModel.step`.

    None for a model of another kind. Packs the model's weights, once however often it is asked.
    """
    blocks: list[_Block]
    if isinstance(model.config, MLSTMConfig):
        blocks = [_MLSTM(cast(MLSTMBlock, b), model.config, backend) for b in _blocks(model)]
    elif isinstance(model.config, TransformerConfig):
        blocks = [_Attention(cast(TransformerBlock, b), backend) for b in _blocks(model)]
    else:
        return None
    head = _Head(model, backend)
    few = batch_size <= FEW
    config = model.config

    def step(tokens: Tensor, state: DecodingState) -> Tensor:
        x = model.embedding(tokens)
        positions = None
        if isinstance(config, TransformerConfig):
            positions = rotation(state.lengths, config.head_dim, config.rope_theta, torch.float32)
        change: Tensor | None = None
        for block, kept in zip(blocks, state.blocks, strict=True):
            if few:
                x = block.few(x, kept, positions, state.lengths)
            else:
                x, change = block.many(x, change, kept, positions, state.lengths)
        state.lengths += 1
        return head.few(x) if few else head.many(x, change)

    return step


class _Block(Protocol):
    """A block as a step takes it: of few sequences (B, d) to (B, d); of many, with the change that the block
    before leaves to be added, to its own."""

    def few(self, x: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor: ...

    def many(
        self, x: Tensor, change: Tensor | None, state: BlockState, positions: Any, lengths: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class _Feed:
    """The feed-forward half of a block."""

    def __init__(self, norm: Any, ffn: SwiGLU, backend: str | None) -> None:
        self.norm: dict[str, Any] = {"norm_weight": norm.weight, "norm_eps": norm.eps}
        self.up = pack([ffn.proj_up_gate, ffn.proj_up])
        self.down = ffn.proj_down.weight
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor) -> Tensor:
        hidden, _ = skinny_linear(x, self.up, glu=True, **self.norm, **self.backend)
        return skinny_linear(hidden, self.down, residual=x, **self.backend)[0]

    def many(self, x: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        x, normed, _ = add_norm(x, change, **self.norm, **self.backend)
        return x, F.linear(swiglu(F.linear(normed, self.up), **self.backend), self.down)


class _MLSTM:
    """An mLSTM block: q, k, v and output gate in one map, the input and forget gates beside it."""

    def __init__(self, block: MLSTMBlock, config: MLSTMConfig, backend: str | None) -> None:
        layer = block.mlstm_layer
        self.config = config
        self.norm: dict[str, Any] = {"norm_weight": block.norm_mlstm.weight, "norm_eps": block.norm_mlstm.eps}
        self.maps = pack([layer.q, layer.k, layer.v, layer.ogate_preact])
        gates = [layer.igate_preact, layer.fgate_preact]
        self.gates: dict[str, Any] = {"gate_weight": pack(gates), "gate_bias": pack(gates, "bias")}
        self.out = layer.out_proj.weight
        self.head_norm = layer.multihead_norm.weight
        self.feed = _Feed(block.norm_ffn, block.ffn, backend)
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor:
        maps, gates = skinny_linear(x, self.maps, **self.norm, **self.gates, **self.backend)
        h = self._mix(maps, cast(Tensor, gates), state)
        return self.feed.few(skinny_linear(h, self.out, residual=x, **self.backend)[0])

    def many(
        self, x: Tensor, change: Tensor | None, state: BlockState, positions: Any, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, normed, gates = add_norm(x, change, **self.norm, **self.gates, **self.backend)
        h = self._mix(F.linear(normed, self.maps), cast(Tensor, gates), state)
        return self.feed.many(x, F.linear(h, self.out))

    def _mix(self, maps: Tensor, gates: Tensor, state: BlockState) -> Tensor:
        c = self.config
        widths = [c.num_heads * c.head_dim_qk] * 2 + [c.d_model] * 2
        q, k, v, o = (part.unflatten(-1, (c.num_heads, -1)) for part in maps.split(widths, -1))
        i, f = gates.split(c.num_heads, -1)
        C, n, m = state
        h = mlstm_step(
            q, k, v, i, f, (C, n, m),
            eps=c.norm_eps, gate_soft_cap=c.gate_soft_cap, norm_weight=self.head_norm, norm_eps=c.norm_eps,
            ogate=o, **self.backend,
        )  # fmt: skip
        return h.flatten(-2)


class _Attention:
    """A Transformer block: q, k and v in one map, q and k turned in one kernel."""

    def __init__(self, block: TransformerBlock, backend: str | None) -> None:
        attention = block.attention
        self.num_heads = attention.num_heads
        self.norm: dict[str, Any] = {
            "norm_weight": block.norm_attention.weight,
            "norm_eps": block.norm_attention.eps,
        }
        self.maps = pack([attention.q, attention.k, attention.v])
        self.out = attention.out_proj.weight
        self.feed = _Feed(block.norm_ffn, block.ffn, backend)
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor:
        maps, _ = skinny_linear(x, self.maps, **self.norm, **self.backend)
        h = self._mix(maps, state, positions, lengths)
        return self.feed.few(skinny_linear(h, self.out, residual=x, **self.backend)[0])

    def many(
        self, x: Tensor, change: Tensor | None, state: BlockState, positions: Any, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, normed, _ = add_norm(x, change, **self.norm, **self.backend)
        h = self._mix(F.linear(normed, self.maps), state, positions, lengths)
        return self.feed.many(x, F.linear(h, self.out))

    def _mix(self, maps: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor:
        d = maps.shape[-1] // 3
        turned = maps[:, : 2 * d].unflatten(-1, (2 * self.num_heads, -1))
        turned = rotate_pairs(turned, positions.cos, positions.sin, **self.backend)
        v = maps[:, 2 * d :].unflatten(-1, (self.num_heads, -1))
        q, k = turned.split(self.num_heads, 1)
        keys, values = state
        return attention_step(q, k, v, keys, values, lengths, **self.backend).flatten(-2)


class _Head:
    """The last norm and the map to the vocabulary."""

    def __init__(self, model: LanguageModel, backend: str | None) -> None:
        norm = cast(Any, model.backbone).out_norm
        self.norm: dict[str, Any] = {"norm_weight": norm.weight, "norm_eps": norm.eps}
        self.weight = model.lm_head.weight
        self.cap = model.logit_soft_cap
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor) -> Tensor:
        return skinny_linear(x, self.weight, soft_cap=self.cap, **self.norm, **self.backend)[0]

    def many(self, x: Tensor, change: Tensor | None) -> Tensor:
        _, normed, _ = add_norm(x, change, **self.norm, **self.backend)
        logits = F.linear(normed, self.weight)
        return logits if self.cap is None else (self.cap * torch.tanh(logits.float() / self.cap)).to(x.dtype)


def pack(layers: Sequence[nn.Linear], name: str = "weight") -> Tensor:
    """The parameters of these layers in one tensor, rows after rows; theirs become views of it."""
    parts = [cast(Tensor, getattr(layer, name)) for layer in layers]
    whole = _already_packed(parts)
    if whole is None:
        whole = torch.cat([part.detach() for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
    return whole


def _already_packed(parts: list[Tensor]) -> Tensor | None:
    """The tensor that these are views of, one behind the other; None where they are not."""
    first, place = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or part.storage_offset() != place or not part.is_contiguous():
            return None
        place += part.numel()
    rows = sum(len(part) for part in parts)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _blocks(model: LanguageModel) -> nn.ModuleList:
    return cast(nn.ModuleList, cast(Any, model.backbone).blocks)
