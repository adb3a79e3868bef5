"""Stacks of the residual blocks of arXiv:2405.04517 (figures 10 and 11): mLSTM and sLSTM, by name."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.mlstm import mlstm
from kernels.mlstm.reference import InputGate
from kernels.mlstm.reference import State as MLSTMState
from kernels.slstm import State as SLSTMState
from kernels.slstm import slstm
from xlstm.config import XLSTMConfig
from xlstm.models.causal import BlockDiagonal, CausalConv, back_in_place, one_a_row
from xlstm.models.decoding import DecodesByExtend
from xlstm.models.layers import SMALL_INIT, Documents
from xlstm.models.mlstm import FORGET_GATE_BIAS, GateLinear, MultiHeadNorm

CELL_EPS = 1e-6
"""Of the mLSTM's normaliser."""
INPUT_GATE_STD = 0.1
MLSTM_SHORT, MLSTM_LONG = FORGET_GATE_BIAS
SLSTM_LONG, SLSTM_SHORT = 5.0, -7.0
"""Forget biases of the first and the last channel of a head, before their sigmoid."""

LayerState = tuple[Tensor, MLSTMState | SLSTMState]
"""The last inputs of the convolution, and what the cell keeps."""


class MLSTMBlock(nn.Module):
    """The cell inside a gated up-projection; queries and keys see a convolution."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.config = config
        d, inner = config.d_model, config.inner_dim
        blocks = inner // config.qkv_block
        self.norm = nn.LayerNorm(d, eps=config.norm_eps, bias=False)
        self.proj_up = nn.Linear(d, 2 * inner, bias=False)
        self.conv = CausalConv(inner, config.conv_width)
        self.q = BlockDiagonal(inner, blocks)
        self.k = BlockDiagonal(inner, blocks)
        self.v = BlockDiagonal(inner, blocks)
        self.igate_preact = GateLinear(3 * inner, config.num_heads)
        self.fgate_preact = GateLinear(3 * inner, config.num_heads)
        self.multihead_norm = MultiHeadNorm(inner, config.norm_eps)
        self.skip = nn.Parameter(torch.ones(inner))
        self.proj_down = nn.Linear(inner, d, bias=False)
        gate = _input_gate(config)
        self.cell: Callable[..., Any] = partial(mlstm, eps=CELL_EPS, input_gate=gate)
        if not config.normaliser:
            self.cell = partial(_without_normaliser, input_gate=gate)

    def init_weights(self, block: int) -> None:
        self.conv.conv.reset_parameters()
        for projection in (self.q, self.k, self.v):
            projection.init_weights(SMALL_INIT)
        for gate in (self.igate_preact, self.fgate_preact):
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
        if self.config.gate_bias_init != "zero":
            nn.init.normal_(self.igate_preact.bias, std=INPUT_GATE_STD)
            spread = torch.linspace(MLSTM_SHORT, MLSTM_LONG, self.config.num_heads)
            _fill(self.fgate_preact.bias, spread, self.config.gate_bias_init)

    def forward(self, x: Tensor) -> Tensor:
        inner, gate, conv, _ = self._enter(x, None)
        return x + self._leave(self.cell(*self._cell_inputs(inner, conv)), gate, conv)

    def extend(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """Go on from `state`."""
        before, cell = state or (None, None)
        inner, gate, conv, before = self._enter(x, before)
        h, cell = self.cell(*self._cell_inputs(inner, conv), initial_state=cell, return_final_state=True)
        return x + self._leave(h, gate, conv), (before, cell)

    def _enter(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Up-projected, its gate, convolved; and the inputs that the next convolution needs."""
        inner, gate = self.proj_up(self.norm(x)).chunk(2, -1)
        conv, before = self.conv(inner, before)
        return inner, gate, F.silu(conv), before

    def _cell_inputs(self, inner: Tensor, conv: Tensor) -> tuple[Tensor, ...]:
        """q, k, v (B, S, H, D); i, f (B, S, H)."""
        q, k, v = self.q(conv), self.k(conv), self.v(inner)
        qkv = torch.cat([q, k, v], -1)
        heads = (part.unflatten(-1, (self.config.num_heads, -1)) for part in (q, k, v))
        return *heads, self.igate_preact(qkv), self.fgate_preact(qkv)

    def _leave(self, h: Tensor, gate: Tensor, conv: Tensor) -> Tensor:
        return self.proj_down((self.multihead_norm(h) + self.skip * conv) * F.silu(gate))


class SLSTMBlock(nn.Module):
    """The cell behind a convolution of its input and forget gates, then a gated feed-forward layer."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.config = config
        d, heads = config.d_model, config.num_heads
        self.norm = nn.LayerNorm(d, eps=config.norm_eps, bias=False)
        self.conv = CausalConv(d, config.conv_width)
        self.gates = nn.ModuleList(BlockDiagonal(d, heads) for _ in range(4))
        """Of the input, forget, cell and output gate."""
        width = config.slstm_head_dim
        self.recurrent = nn.Parameter(torch.empty(heads, width, 4, width)) if config.memory_mixing else None
        """(head, in, gate, out)"""
        self.bias = nn.Parameter(torch.empty(4 * d))
        """(head, gate, out), flat, as biases are not decayed."""
        self.multihead_norm = MultiHeadNorm(d, config.norm_eps)
        self.norm_ffn = nn.LayerNorm(d, eps=config.norm_eps, bias=False)
        self.ffn = GatedGELU(d, config.ffn_dim)
        gate = _input_gate(config)
        self.cell: Callable[..., Any] = partial(slstm, input_gate=gate, normaliser=config.normaliser)

    def init_weights(self, block: int) -> None:
        self.conv.conv.reset_parameters()
        for gate in self.gates:
            cast("BlockDiagonal", gate).init_weights(SMALL_INIT)
        if self.recurrent is not None:
            nn.init.zeros_(self.recurrent)
        nn.init.zeros_(self.bias)
        if self.config.gate_bias_init == "zero":
            return
        width, depth = self.config.slstm_head_dim, self.config.num_blocks
        place = torch.arange(width) / max(width - 1, 1)
        exponent = 0.3 + 1.3 * block / max(depth - 1, 1)
        spread = SLSTM_LONG + (SLSTM_SHORT - SLSTM_LONG) * place**exponent
        with torch.no_grad():
            for head in self._bias().unbind():
                _fill(head[1], spread, self.config.gate_bias_init)

    def forward(self, x: Tensor) -> Tensor:
        inputs, _ = self._cell_inputs(x, None)
        return self._leave(x, self.cell(inputs, self.recurrent, self._bias()))

    def extend(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """Go on from `state`."""
        before, cell = state or (None, None)
        inputs, before = self._cell_inputs(x, before)
        h, cell = self.cell(inputs, self.recurrent, self._bias(), initial_state=cell, return_final_state=True)
        return self._leave(x, h), (before, cell)

    def _cell_inputs(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S, 4, H, D), and the inputs that the next convolution needs."""
        x = self.norm(x)
        conv, before = self.conv(x, before)
        conv = F.silu(conv)
        parts = [gate(source) for gate, source in zip(self.gates, (conv, conv, x, x), strict=True)]
        return torch.stack(parts, 2).unflatten(-1, (self.config.num_heads, -1)), before

    def _leave(self, x: Tensor, h: Tensor) -> Tensor:
        x = x + self.multihead_norm(h)
        return x + self.ffn(self.norm_ffn(x))

    def _bias(self) -> Tensor:
        return self.bias.view(self.config.num_heads, 4, -1)


class GatedGELU(nn.Module):
    """down(gelu(gate x) * up x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj_up = nn.Linear(width, 2 * hidden, bias=False)
        self.proj_down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.proj_up(x).chunk(2, -1)
        return self.proj_down(F.gelu(gate) * up)


class XLSTMBackbone(nn.Module, DecodesByExtend):
    """Blocks and the norm behind them: (B, S, d) to (B, S, d)."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        places = set(config.slstm_at)
        self.blocks = nn.ModuleList(
            SLSTMBlock(config) if j in places else MLSTMBlock(config) for j in range(config.num_blocks)
        )
        self.out_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=False)

    def init_weights(self) -> None:
        for j, block in enumerate(self._blocks()):
            block.init_weights(j)

    def forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        if documents is not None:
            return back_in_place(self.forward(one_a_row(x, documents), None), documents)
        for block in self._blocks():
            x = block(x)
        return self.out_norm(x)

    def extend(self, x: Tensor, states: list[LayerState] | None) -> tuple[Tensor, list[LayerState]]:
        after = []
        for j, block in enumerate(self._blocks()):
            x, state = block.extend(x, states[j] if states else None)
            after.append(state)
        return self.out_norm(x), after

    def _blocks(self) -> Iterator[MLSTMBlock | SLSTMBlock]:
        return cast("Iterator[MLSTMBlock | SLSTMBlock]", iter(self.blocks))


def _input_gate(config: XLSTMConfig) -> InputGate:
    return "exp" if config.gating == "exponential" else "sigmoid"


def _fill(bias: Tensor, spread: Tensor, how: str) -> None:
    """With a spread of values, or with their mean."""
    with torch.no_grad():
        bias.copy_(spread if how == "spread" else spread.mean().expand_as(spread))


def _without_normaliser(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    input_gate: InputGate,
    initial_state: MLSTMState | None = None,
    return_final_state: bool = False,
) -> Any:
    """What the mLSTM cell reads before it is normalised, by the cell itself at twice the length.

    Every token is followed by one with -k and -v that forgets nothing: their products add up, their keys
    cancel, and what divides is the cell's floor of 1.
    """

    def twice(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first, second], 2).flatten(1, 2)

    nothing_forgotten = torch.full_like(f, 30.0)
    result = mlstm(
        twice(q, q), twice(k, -k), twice(v, -v) / 2, twice(i, i), twice(f, nothing_forgotten),
        initial_state=initial_state, return_final_state=True, eps=0.0, input_gate=input_gate,
    )  # fmt: skip
    h, state = cast("tuple[Tensor, MLSTMState]", result)
    h = h.unflatten(1, (-1, 2))[:, :, 1]
    return (h, state) if return_final_state else h
