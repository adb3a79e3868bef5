"""From tensors to kernels: allocations, grids and arguments of the sequence kernels, forward and backward."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.mlstm.sequence_chunks import gradients_kernel, outputs_kernel
from kernels.mlstm.sequence_configs import SequenceConfig, block_width, state_tile
from kernels.mlstm.sequence_gates import BOUNDS, ROWS, bounds_kernel, gate_gradients_kernel, rows_kernel, scan_kernel
from kernels.mlstm.sequence_states import PARTS, state_gradients_kernel, states_kernel

SCAN_TILE = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the function computed depends on, apart from tensors."""

    eps: float
    gate_soft_cap: float | None
    sigmoid: bool
    exact_norm: bool = True


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    C: Tensor
    """(chunks, H, KP, VP): states at the start of every chunk, widths padded to blocks."""
    n: Tensor
    """(chunks, H, KP, PARTS) in the dtype of q."""
    rows: Tensor
    """(ROWS, chunks, H, L) float32; see `sequence_gates`."""
    bounds: Tensor
    """(BOUNDS, chunks, H) float32."""
    norms: Tensor
    """(2, chunks, H, L) float32; see `outputs_kernel`."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a problem and the chunks it is cut into."""

    batch: int
    length: int
    heads: int
    width: int
    value_width: int
    sequences: int
    chunks: int
    chunks_each: int
    """Of a row of the batch; 0 with packed documents."""
    padded: tuple[int, int]

    @classmethod
    def of(cls, q: Tensor, v: Tensor, cu_seqlens: Tensor | None, config: SequenceConfig) -> "Shape":
        batch, length, heads, width = q.shape
        value_width = v.shape[-1]
        each = (length + config.chunk - 1) // config.chunk
        sequences, chunks = batch, batch * each
        if cu_seqlens is not None:
            sequences = cu_seqlens.shape[0] - 1
            # Every document but for whole chunks adds at most one.
            chunks, each = length // config.chunk + sequences, 0
        blocks = [(w, block_width(w, config.columns)) for w in (width, value_width)]
        padded = [(w + block - 1) // block * block for w, block in blocks]
        return cls(
            batch=batch,
            length=length,
            heads=heads,
            width=width,
            value_width=value_width,
            sequences=sequences,
            chunks=chunks,
            chunks_each=each,
            padded=(padded[0], padded[1]),
        )

    def saved(self, like: Tensor, config: SequenceConfig) -> Saved:
        """Unfilled tensors for the forward pass. float16 states would overflow where bfloat16 ones do not."""
        chunk_heads, L = (self.chunks, self.heads), config.chunk
        state_dtype = torch.float32 if like.dtype == torch.float32 else torch.bfloat16
        return Saved(
            C=like.new_empty(*chunk_heads, *self.padded, dtype=state_dtype),
            n=like.new_empty(*chunk_heads, self.padded[0], PARTS.value, dtype=like.dtype),
            rows=like.new_empty(ROWS, *chunk_heads, L, dtype=torch.float32),
            bounds=like.new_empty(BOUNDS, *chunk_heads, dtype=torch.float32),
            norms=like.new_empty(2, *chunk_heads, L, dtype=torch.float32),
        )

    def state(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Unfilled C and n of the sequences."""
        shape = (self.sequences, self.heads, self.width)
        C = like.new_empty(*shape, self.value_width, dtype=torch.float32)
        return C, like.new_empty(*shape, dtype=torch.float32)


class Documents(NamedTuple):
    """Packed documents on the device: bounds (documents + 2), first chunk (documents + 1), document of each chunk."""

    cu: Tensor | None
    first: Tensor | None
    owner: Tensor | None

    @classmethod
    def of(cls, cu_seqlens: Tensor | None, shape: Shape, config: SequenceConfig, device: torch.device) -> "Documents":
        if cu_seqlens is None:
            return cls(None, None, None)
        cu = cu_seqlens.to(device, torch.int64)
        lengths = cu.diff()
        fits = (cu[0] == 0) & (cu[-1] == shape.length) & (lengths >= 0).all()
        torch._assert_async(fits, f"cu_seqlens must rise from 0 to the {shape.length} tokens")
        first = torch.nn.functional.pad(((lengths + config.chunk - 1) // config.chunk).cumsum(0), (1, 0))
        chunks = torch.arange(shape.chunks, device=device)
        owner = torch.searchsorted(first[1:].contiguous(), chunks, right=True)
        return cls(torch.cat([cu, cu[-1:]]), first, owner)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial: tuple[Tensor, Tensor, Tensor] | None,
    cu_seqlens: Tensor | None,
    want_state: bool,
    options: Options,
    config: SequenceConfig,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor], Saved]:
    """h, the final C, n (None unless wanted) and m, and what `backward` needs."""
    shape = Shape.of(q, v, cu_seqlens, config)
    documents = Documents.of(cu_seqlens, shape, config, q.device)
    saved = shape.saved(q, config)
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    C1, n1 = shape.state(q) if want_state else (None, None)
    C0, n0, m0 = initial or (None, None, None)
    m1 = q.new_empty(shape.sequences, shape.heads, dtype=torch.float32)
    sizes = (shape.length, shape.chunks_each, shape.chunks * shape.heads, shape.heads)
    common = {"L": config.chunk, "VARLEN": cu_seqlens is not None}
    widths = _widths(shape)
    cap = options.gate_soft_cap or 1.0

    gates = {"HAS_CAP": options.gate_soft_cap is not None, "SIGMOID": options.sigmoid, "num_warps": 1}
    chunk_heads = (shape.chunks * shape.heads,)
    bounds_kernel[chunk_heads](
        i, f, saved.bounds, *documents, *_strides(i), *_strides(f), *sizes, cap, **common, **gates
    )
    scan_kernel[(shape.sequences * shape.heads,)](
        saved.bounds, m0, m1, *documents[:2], *sizes, **common,
        HAS_START=m0 is not None, TILE=SCAN_TILE, num_warps=1,
    )  # fmt: skip
    rows_kernel[chunk_heads](
        i, f, saved.rows, saved.bounds, *documents, *_strides(i), *_strides(f), *sizes, cap, **common, **gates
    )
    BK, BV = _tile(config, shape, q)
    common |= {"ALIGN": _alignment(q, k, v), "PRECISION": config.precision} | widths
    states_kernel[(shape.sequences * shape.heads * _tiles(shape, BK, BV),)](
        k, v, saved.rows, saved.bounds, saved.C, saved.n, C0, n0, C1, n1, *documents[:2],
        *_strides(k), *_strides(v), *sizes, **common, BK=BK, BV=BV, BT=config.state_tokens,
        HAS_START=C0 is not None, HAS_END=want_state,
        num_warps=_state_warps(BK, BV), num_stages=config.state_stages,
    )  # fmt: skip
    BD = block_width(shape.value_width, config.columns)
    tiles = shape.padded[1] // BD * (config.chunk // config.rows)
    outputs_kernel[(shape.chunks * shape.heads * tiles,)](
        q, k, v, saved.rows, saved.C, saved.n, h, saved.norms, *documents,
        *_strides(q), *_strides(k), *_strides(v), *sizes, shape.width**-0.5, options.eps, **common,
        BM=config.rows, BR=block_width(shape.width, config.reduce), BD=BD,
        num_warps=config.output_warps, num_stages=config.output_stages, maxnreg=config.output_registers,
    )  # fmt: skip
    return h, (C1, n1, m1), saved


def backward(
    dh: Tensor,
    d_final: tuple[Tensor, Tensor] | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    h: Tensor,
    final: tuple[Tensor, Tensor] | None,
    has_initial: bool,
    cu_seqlens: Tensor | None,
    saved: Saved,
    options: Options,
    config: SequenceConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dq, dk, dv, di, df, and the gradients of the initial C and n if there are any. `final` with `d_final` only."""
    shape = Shape.of(q, v, cu_seqlens, config)
    documents = Documents.of(cu_seqlens, shape, config, q.device)
    BK, BV = _tile(config, shape, q)
    slices, tiles = shape.padded[1] // BV, _tiles(shape, BK, BV)
    chunk_heads = (shape.chunks, shape.heads)
    empty = {"dtype": torch.float32, "device": q.device}
    exact, with_dn = options.exact_norm, options.exact_norm or d_final is not None
    dC = torch.empty_like(saved.C)
    dn = torch.empty(slices, *chunk_heads, shape.padded[0], **empty) if with_dn else saved.n
    dr = torch.empty(slices, *chunk_heads, config.chunk, **empty) if exact else saved.norms
    C1, n1 = final if d_final is not None and final is not None else (None, None)
    dC1, dn1 = d_final or (None, None)
    dC0, dn0 = shape.state(q) if has_initial else (None, None)
    if dn0 is not None:
        dn0 = dn0.new_empty(slices, *dn0.shape)
    scale = shape.width**-0.5
    sizes = (shape.length, shape.chunks_each, shape.chunks * shape.heads, shape.heads)
    common = {"L": config.chunk, "VARLEN": cu_seqlens is not None}
    products = {"ALIGN": _alignment(q, k, v, dh), "PRECISION": config.precision} | _widths(shape)

    state_gradients_kernel[(shape.sequences * shape.heads * tiles,)](
        q, dh, h, saved.rows, saved.bounds, saved.norms,
        dC, dn, dr, dC1, dn1, dC0, dn0, *documents[:2],
        *_strides(q), *_strides(dh), *sizes, scale, **common, **products,
        BK=BK, BV=BV, BT=config.state_tokens,
        EXACT=exact, HAS_START=has_initial, HAS_END=d_final is not None,
        num_warps=_state_warps(BK, BV), num_stages=config.state_stages,
    )  # fmt: skip
    BDK, BDV = (block_width(w, config.columns) for w in (shape.width, shape.value_width))
    k_slices, v_slices = shape.padded[0] // BDK, shape.padded[1] // BDV
    ends = torch.empty(v_slices, *chunk_heads, **empty)
    dots = torch.empty(2, k_slices, *chunk_heads, config.chunk, **empty)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    programs = (2 * k_slices + v_slices) * (config.chunk // config.rows) + v_slices
    gradients_kernel[(shape.chunks * shape.heads * programs,)](
        q, k, v, dh, saved.rows, saved.norms, saved.C, saved.n, C1, n1, dC, dn, dr,
        dq, dk, dv, dots, ends, *documents,
        *_strides(q), *_strides(k), *_strides(v), *_strides(dh), *sizes, scale, **common, **products,
        BM=config.rows, BRK=block_width(shape.width, config.reduce),
        BRV=block_width(shape.value_width, config.reduce), BDK=BDK, BDV=BDV,
        SLICES=slices, EXACT=exact, HAS_END=d_final is not None,
        num_warps=config.gradient_warps, num_stages=config.gradient_stages, maxnreg=config.gradient_registers,
    )  # fmt: skip
    di, df = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (i, f))
    gate_gradients_kernel[(shape.chunks * shape.heads,)](
        i, f, dots, ends, di, df, *documents, *_strides(i), *_strides(f), *sizes,
        options.gate_soft_cap or 1.0, **common, SLICES=k_slices, ENDS=v_slices, HAS_CAP=options.gate_soft_cap is not None, SIGMOID=options.sigmoid,
        num_warps=1,
    )  # fmt: skip
    return dq, dk, dv, di, df, dC0, None if dn0 is None else dn0.sum(0)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, time and head; that of a batch of one is never used and may be anything."""
    return x.stride(0) if x.shape[0] > 1 else 0, x.stride(1), x.stride(2)


def _alignment(*tensors: Tensor) -> int:
    """16 elements where every batch stride is a multiple of it: a promise that does not change with batch or length."""
    aligned = all(x.stride(1) % 16 == 0 and _strides(x)[0] % 16 == 0 for x in tensors)
    return 16 if aligned else 1


def _widths(shape: Shape) -> dict[str, int]:
    K, V = shape.width, shape.value_width
    return {"K": K, "V": V, "KP": shape.padded[0], "VP": shape.padded[1]}


def _tile(config: SequenceConfig, shape: Shape, q: Tensor) -> tuple[int, int]:
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
    return state_tile(config, shape.padded, shape.sequences * shape.heads, processors)


def _tiles(shape: Shape, BK: int, BV: int) -> int:
    return shape.padded[0] // BK * (shape.padded[1] // BV)


def _state_warps(BK: int, BV: int) -> int:
    return 8 if BK * BV >= 128 * 128 else 4
