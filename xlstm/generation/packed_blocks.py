"""The blocks of a model as generation runs them: weights of the same input lie together, parts are fused.

Each block has three ways: a token of few sequences, a token of many, and the prompts of a prefill. It
computes what the model's own layers do, rounding included, up to the order of sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention_step
from kernels.linear import add_norm, rotate_pairs, skinny_linear, swiglu
from kernels.mlstm import mlstm
from kernels.mlstm.decode import mlstm_step
from kernels.mlstm.norm_gate import mlstm_norm_gate
from xlstm.config import MLSTMConfig
from xlstm.models import LanguageModel
from xlstm.models.decoding import BlockState, Layout
from xlstm.models.layers import SwiGLU
from xlstm.models.mlstm import MLSTMBlock
from xlstm.models.transformer import TransformerBlock


@dataclass(frozen=True)
class Piece:
    """Tokens of a prefill."""

    layout: Layout
    shape: tuple[int, int]
    """(R, S), or (1, total) of packed prompts."""
    positions: Any
    """Their rotation, in a Transformer."""

    def ends(self, x: Tensor) -> Tensor:
        """Of (T, d) the last of each prompt, (R, d)."""
        return self.layout.last(x.view(*self.shape, -1))


class Block(Protocol):
    """A block of few sequences, (B, d) to (B, d); of many tokens (T, d), with the change that the block
    before leaves to be added, to its own."""

    feed: "Feed"
    out: Tensor

    def few(self, x: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor: ...

    def many(
        self, x: Tensor, change: Tensor | None, state: BlockState, positions: Any, lengths: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def read(
        self, x: Tensor, change: Tensor | None, state: BlockState, piece: Piece
    ) -> tuple[Tensor, Tensor]:
        """The first half, up to its output map: x, and what the map is of."""
        ...


def read_through(
    block: Block, x: Tensor, change: Tensor | None, state: BlockState, piece: Piece, *, last: bool
) -> tuple[Tensor, Tensor]:
    """The tokens of a prefill through a block, as `Block.many`. Behind the last block nothing reads but the
    head, and that the ends: (R, d)."""
    x, h = block.read(x, change, state, piece)
    if last:
        x, h = piece.ends(x), piece.ends(h)
    return block.feed.many(x, F.linear(h, block.out))


class Feed:
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


class PackedMLSTM:
    """An mLSTM block: q, k, v and output gate in one map, the input and forget gates beside it."""

    def __init__(
        self,
        block: MLSTMBlock,
        config: MLSTMConfig,
        arrivals: Tensor,
        backend: str | None,
    ) -> None:
        layer = block.mlstm_layer
        self.config = config
        self.norm: dict[str, Any] = {"norm_weight": block.norm_mlstm.weight, "norm_eps": block.norm_mlstm.eps}
        self.maps = pack([layer.q, layer.k, layer.v, layer.ogate_preact])
        gates = [layer.igate_preact, layer.fgate_preact]
        self.gates: dict[str, Any] = {"gate_weight": pack(gates), "gate_bias": pack(gates, "bias")}
        self.out = layer.out_proj.weight
        self.head_norm = layer.multihead_norm.weight
        self.feed = Feed(block.norm_ffn, block.ffn, backend)
        self.arrivals = arrivals
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor:
        maps, gates = skinny_linear(x, self.maps, **self.norm, **self.gates, **self.backend)
        h = self._mix(maps, cast(Tensor, gates), state)
        x, _ = skinny_linear(h, self.out, residual=x, **self.backend)
        return self.feed.few(x)

    def many(
        self, x: Tensor, change: Tensor | None, state: BlockState, positions: Any, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, normed, gates = add_norm(x, change, **self.norm, **self.gates, **self.backend)
        h = self._mix(F.linear(normed, self.maps), cast(Tensor, gates), state)
        return self.feed.many(x, F.linear(h, self.out))

    def read(
        self, x: Tensor, change: Tensor | None, state: BlockState, piece: Piece
    ) -> tuple[Tensor, Tensor]:
        layout, shape = piece.layout, piece.shape
        c = self.config
        x, normed, gates = add_norm(x, change, **self.norm, **self.gates, **self.backend)
        *inputs, o = self._parts(F.linear(normed, self.maps).view(*shape, -1))
        C, n, m = layout.read(state)
        found = mlstm(
            *inputs,
            *cast(Tensor, gates).view(*shape, -1).split(c.num_heads, -1),
            initial_state=None if layout.fresh else (C, n, m),
            cu_seqlens=layout.cu_seqlens,
            return_final_state=True,
            eps=c.norm_eps,
            gate_soft_cap=c.gate_soft_cap,
            chunk_size=c.chunk_size,
            **self.backend,
        )
        h, final = cast("tuple[Tensor, BlockState]", found)
        layout.write(state, final)
        h = mlstm_norm_gate(h, o, self.head_norm, c.norm_eps, **self.backend)
        return x, h.flatten(2).flatten(0, 1)

    def _parts(self, maps: Tensor) -> list[Tensor]:
        """q, k, v and o by heads."""
        c = self.config
        widths = [c.num_heads * c.head_dim_qk] * 2 + [c.d_model] * 2
        return [part.unflatten(-1, (c.num_heads, -1)) for part in maps.split(widths, -1)]

    def _mix(self, maps: Tensor, gates: Tensor, state: BlockState) -> Tensor:
        c = self.config
        q, k, v, o = self._parts(maps)
        i, f = gates.split(c.num_heads, -1)
        C, n, m = state
        h = mlstm_step(
            q, k, v, i, f, (C, n, m),
            eps=c.norm_eps, gate_soft_cap=c.gate_soft_cap, norm_weight=self.head_norm, norm_eps=c.norm_eps,
            ogate=o, arrivals=self.arrivals, chained=True, **self.backend,
        )  # fmt: skip
        return h.flatten(-2)


class PackedAttention:
    """A Transformer block: q, k and v in one map, q and k turned in one kernel."""

    def __init__(self, block: TransformerBlock, backend: str | None) -> None:
        attention = block.attention
        self.attention = attention
        self.num_heads = attention.num_heads
        self.norm: dict[str, Any] = {
            "norm_weight": block.norm_attention.weight,
            "norm_eps": block.norm_attention.eps,
        }
        self.maps = pack([attention.q, attention.k, attention.v])
        self.out = attention.out_proj.weight
        self.feed = Feed(block.norm_ffn, block.ffn, backend)
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor:
        maps, _ = skinny_linear(x, self.maps, **self.norm, **self.backend)
        h = self._mix(maps, state, positions, lengths)
        x, _ = skinny_linear(h, self.out, residual=x, **self.backend)
        return self.feed.few(x)

    def many(
        self, x: Tensor, change: Tensor | None, state: BlockState, positions: Any, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, normed, _ = add_norm(x, change, **self.norm, **self.backend)
        h = self._mix(F.linear(normed, self.maps), state, positions, lengths)
        return self.feed.many(x, F.linear(h, self.out))

    def read(
        self, x: Tensor, change: Tensor | None, state: BlockState, piece: Piece
    ) -> tuple[Tensor, Tensor]:
        x, normed, _ = add_norm(x, change, **self.norm, **self.backend)
        parts = self._parts(F.linear(normed, self.maps), piece.positions)
        q, k, v = (part.unflatten(0, piece.shape).transpose(1, 2) for part in parts)
        h = self.attention.attend(q, k, v, state, piece.layout)
        return x, h.transpose(1, 2).flatten(2).flatten(0, 1)

    def _parts(self, maps: Tensor, positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v by heads, the first two turned."""
        d = maps.shape[-1] // 3
        turned = maps[:, : 2 * d].unflatten(-1, (2 * self.num_heads, -1))
        turned = rotate_pairs(turned, positions.cos, positions.sin, **self.backend)
        q, k = turned.split(self.num_heads, 1)
        return q, k, maps[:, 2 * d :].unflatten(-1, (self.num_heads, -1))

    def _mix(self, maps: Tensor, state: BlockState, positions: Any, lengths: Tensor) -> Tensor:
        q, k, v = self._parts(maps, positions)
        keys, values = state
        return attention_step(q, k, v, keys, values, lengths, **self.backend).flatten(-2)


class Head:
    """The last norm and the map to the vocabulary."""

    def __init__(self, model: LanguageModel, backend: str | None) -> None:
        norm = cast(Any, model.backbone).out_norm
        self.norm: dict[str, Any] = {"norm_weight": norm.weight, "norm_eps": norm.eps}
        self.weight = model.lm_head.weight
        self.cap = model.logit_soft_cap
        self.backend: dict[str, Any] = {"backend": backend}

    def few(self, x: Tensor) -> Tensor:
        return skinny_linear(x, self.weight, **self.norm, **self.backend)[0]

    def many(self, x: Tensor, change: Tensor | None) -> Tensor:
        _, normed, _ = add_norm(x, change, **self.norm, **self.backend)
        return F.linear(normed, self.weight)


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
