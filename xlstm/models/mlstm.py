"""The mLSTM backbone of arXiv:2503.13427 and 2510.02228, under the weight names of xlstm_large."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.mlstm import mlstm
from kernels.mlstm.decode import mlstm_step
from kernels.mlstm.norm_gate import mlstm_norm_gate
from kernels.mlstm.reference import State, empty_state, recurrent_step
from xlstm.config import MLSTMConfig
from xlstm.models.decoding import BlockState, Layout
from xlstm.models.layers import Documents, RMSNorm, SwiGLU, project, trains_on_gpu, widen

INPUT_GATE_BIAS = -10.0
"""At the start nearly nothing is written. Small models too end no worse than from -5, -2 or 0."""
FORGET_GATE_BIAS = 3.0, 6.0
"""From the first head to the last, evenly: at the start, a memory of 20 to 400 tokens."""


class GateLinear(nn.Linear):
    """Pre-activations of a gate, one a head; float32 under autocast too: bfloat16 would round the decay."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(widen(x), widen(self.weight), widen(self.bias))

    @staticmethod
    def both(x: Tensor, first: "GateLinear", second: "GateLinear") -> tuple[Tensor, Tensor]:
        """Of two gates, in one product: x is read once."""
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.cat([first.weight, second.weight])
            bias = torch.cat([first.bias, second.bias])
            one, other = F.linear(widen(x), widen(weight), widen(bias)).chunk(2, -1)
        return one, other


class MultiHeadNorm(nn.Module):
    """LayerNorm over the channels of each head, mean subtracted, no bias; (..., H, V) to (..., H V)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: Tensor) -> Tensor:
        return F.layer_norm(widen(h), h.shape[-1:], eps=self.eps).to(h.dtype).flatten(-2) * self.weight


class MLSTMLayer(nn.Module):
    """Projections, the cell, the norm of its heads, the output gate."""

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = {"eps": config.norm_eps, "gate_soft_cap": config.gate_soft_cap}
        self.cell: Callable[..., Any] = partial(mlstm, chunk_size=config.chunk_size, **options)
        self.functional_step: Callable[..., Any] = partial(recurrent_step, **options)
        d, heads = config.d_model, config.num_heads
        self.q = nn.Linear(d, heads * config.head_dim_qk, bias=False)
        self.k = nn.Linear(d, heads * config.head_dim_qk, bias=False)
        self.v = nn.Linear(d, d, bias=False)
        self.ogate_preact = nn.Linear(d, d, bias=False)
        self.igate_preact = GateLinear(d, heads)
        self.fgate_preact = GateLinear(d, heads)
        self.multihead_norm = MultiHeadNorm(d, config.norm_eps)
        self.out_proj = nn.Linear(d, d, bias=False)

    def init_gates(self) -> None:
        for gate in (self.igate_preact, self.fgate_preact):
            nn.init.zeros_(gate.weight)
        nn.init.constant_(self.igate_preact.bias, INPUT_GATE_BIAS)
        heads = self.config.num_heads
        with torch.no_grad():
            self.fgate_preact.bias.copy_(torch.linspace(*FORGET_GATE_BIAS, heads))

    def forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        # Without batches: so a compiler sees that the gates' gradients read the same x as all others.
        *inputs, o = self._inputs(x.flatten(0, 1))
        if documents is None:
            h = self.cell(*(part.unflatten(0, x.shape[:2]) for part in inputs))
        else:
            h = self.cell(*(part[None] for part in inputs), cu_seqlens=documents.cu_seqlens)
            h = h[0].unflatten(0, x.shape[:2])
        return self._gate_and_project(o, h)

    def extend(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Go on from `state`: (B, S, d) and the state after it."""
        *inputs, o = self._inputs(x)
        if x.shape[1] == 1 and state is not None:
            q, k, v, i, f = (part[:, 0] for part in inputs)
            h, state = self.functional_step(q, k, v, i, f, state)
            h = h[:, None]
        else:
            h, state = self.cell(*inputs, initial_state=state, return_final_state=True)
        return self._gate_and_project(o, h), state

    def prefill(self, x: Tensor, state: BlockState, layout: Layout) -> Tensor:
        """Go on from `state`, in place, by the tokens x of `layout`."""
        *inputs, o = self._inputs(x)
        C, n, m = layout.read(state)
        h, final = self.cell(
            *inputs,
            initial_state=None if layout.fresh else (C, n, m),
            cu_seqlens=layout.cu_seqlens,
            return_final_state=True,
        )
        layout.write(state, final)
        return self._gate_and_project(o, h)

    def step(self, x: Tensor, state: BlockState) -> Tensor:
        """One token of every sequence, x (B, d); the state moves on in place."""
        C, n, m = state
        q, k, v, i, f, o = self._inputs(x)
        h = mlstm_step(
            q, k, v, i, f, (C, n, m),
            eps=self.config.norm_eps,
            gate_soft_cap=self.config.gate_soft_cap,
            norm_weight=self.multihead_norm.weight,
            norm_eps=self.config.norm_eps,
            ogate=o.view_as(v),
        )  # fmt: skip
        return self.out_proj(h.flatten(-2))

    def _inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of x (..., d): q, k (..., H, K); v (..., H, V); i, f (..., H), and the output gate's o (..., d)."""
        *qkv, o = project(x, self.q, self.k, self.v, self.ogate_preact)
        q, k, v = (part.unflatten(-1, (self.config.num_heads, -1)) for part in qkv)
        if trains_on_gpu(self, x):
            return q, k, v, *GateLinear.both(x, self.igate_preact, self.fgate_preact), o
        return q, k, v, self.igate_preact(x), self.fgate_preact(x), o

    def _gate_and_project(self, o: Tensor, h: Tensor) -> Tensor:
        """h (..., H, V) normed, times the gate of the pre-activations o, in any shape, to (..., d)."""
        norm = self.multihead_norm
        if h.is_cuda and h.ndim == 4:
            gated = mlstm_norm_gate(h, o.view_as(h), norm.weight, norm.eps)
            return project(gated.flatten(-2), self.out_proj)[0]
        return self.out_proj(torch.sigmoid(o).view(*h.shape[:-2], -1) * norm(h))


class MLSTMBlock(nn.Module):
    """Cell and feed-forward layer, each behind a norm and beside a skip connection."""

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_mlstm = RMSNorm(config.d_model, config.norm_eps)
        self.mlstm_layer = MLSTMLayer(config)
        self.norm_ffn = RMSNorm(config.d_model, config.norm_eps)
        self.ffn = SwiGLU(config.d_model, config.ffn_dim)

    def forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        x = x + self.mlstm_layer(self.norm_mlstm(x), documents)
        return x + self.ffn(self.norm_ffn(x))

    def extend(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        change, state = self.mlstm_layer.extend(self.norm_mlstm(x), state)
        x = x + change
        return x + self.ffn(self.norm_ffn(x)), state

    def new_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> BlockState:
        """C in `dtype`; n and m in float32 at least: rounding them would change the decay."""
        c = self.config
        C, n, m = empty_state(batch_size, c.num_heads, c.head_dim_qk, c.head_dim_v, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        return C.to(dtype), n.to(wide), m.to(wide)

    def prefill(self, x: Tensor, state: BlockState, layout: Layout) -> Tensor:
        x = x + self.mlstm_layer.prefill(self.norm_mlstm(x), state, layout)
        return x + self.ffn(self.norm_ffn(x))

    def step(self, x: Tensor, state: BlockState) -> Tensor:
        x = x + self.mlstm_layer.step(self.norm_mlstm(x), state)
        return x + self.ffn(self.norm_ffn(x))


class MLSTMBackbone(nn.Module):
    """Blocks and the norm behind them: (B, S, d) to (B, S, d)."""

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MLSTMBlock(config) for _ in range(config.num_blocks))
        self.out_norm = RMSNorm(config.d_model, config.norm_eps)

    def init_gates(self) -> None:
        for block in self._blocks():
            block.mlstm_layer.init_gates()

    def forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        for block in self._blocks():
            x = block(x, documents)
        return self.out_norm(x)

    def extend(self, x: Tensor, states: list[State] | None) -> tuple[Tensor, list[State]]:
        after = []
        for j, block in enumerate(self._blocks()):
            x, state = block.extend(x, states[j] if states else None)
            after.append(state)
        return self.out_norm(x), after

    def new_state(
        self,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
        device: torch.device,
    ) -> list[BlockState]:
        """Empty states; of constant size, so that `capacity` plays no part."""
        kept = torch.float64 if dtype == torch.float64 else state_dtype
        return [block.new_state(batch_size, kept, device) for block in self._blocks()]

    def prefill(self, x: Tensor, states: list[BlockState], layout: Layout) -> Tensor:
        for block, state in zip(self._blocks(), states, strict=True):
            x = block.prefill(x, state, layout)
        return self.out_norm(x)

    def step(self, x: Tensor, states: list[BlockState], lengths: Tensor) -> Tensor:
        """x (B, d), one token of every sequence; where they are (`lengths`) does not matter here."""
        for block, state in zip(self._blocks(), states, strict=True):
            x = block.step(x, state)
        return self.out_norm(x)

    def _blocks(self) -> Iterator[MLSTMBlock]:
        return cast("Iterator[MLSTMBlock]", iter(self.blocks))
