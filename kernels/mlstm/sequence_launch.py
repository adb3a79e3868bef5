"""From tensors to kernels: allocations, grids and arguments of the sequence kernels, forward and backward."""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.mlstm.sequence_calls import Strides, call, describe, describe_states, strides
from kernels.mlstm.sequence_chunks import outputs_kernel
from kernels.mlstm.sequence_configs import (
    WARPS,
    ChunkBlocks,
    SequenceConfig,
    WalkBlocks,
    block_width,
    segments,
)
from kernels.mlstm.sequence_gates import (
    READ_WEIGHT,
    STATE_WEIGHT,
    bounds_kernel,
    gate_gradients_kernel,
    rows_kernel,
    scan_kernel,
)
from kernels.mlstm.sequence_gradients import gradients_kernel
from kernels.mlstm.sequence_norms import norm_gradients_kernel, token_sums_kernel
from kernels.mlstm.sequence_shapes import Documents, Options, Saved, Shape
from kernels.mlstm.sequence_states import state_gradients_kernel, states_kernel

SCAN_TILE = 128
NORM_TOKENS, NORM_WIDTH, SUM_WIDTH = 16, 256, 64

State = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What every launch of a pass reads."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor
    shape: Shape
    documents: Documents
    options: Options
    config: SequenceConfig
    described: bool
    """Whether q, k, v and dh are read through descriptors."""

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        cu_seqlens: Tensor | None,
        options: Options,
        config: SequenceConfig,
        described: bool = False,
    ) -> "Problem":
        shape = Shape.of(q, v, cu_seqlens, config)
        documents = Documents.of(cu_seqlens, shape, config, q.device)
        return cls(
            q=q, k=k, v=v, i=i, f=f, shape=shape, documents=documents, options=options, config=config,
            described=described,
        )  # fmt: skip

    @property
    def scale(self) -> float:
        return float(self.shape.width**-0.5) if self.options.scale is None else self.options.scale

    @property
    def chunk_heads(self) -> tuple[int, int]:
        return self.shape.chunks, self.shape.heads

    @cached_property
    def constants(self) -> dict[str, Any]:
        return {"L": self.config.chunk, "VARLEN": self.documents.cu is not None}

    @cached_property
    def strides(self) -> dict[str, Strides]:
        return {name: strides(getattr(self, name)) for name in "qkvif"}

    @property
    def gates(self) -> dict[str, Any]:
        return {"HAS_CAP": self.options.gate_soft_cap is not None, "SIGMOID": self.options.sigmoid}

    def products(self, *read: Strides) -> dict[str, Any]:
        """Constants of a kernel with matrix products of tensors with these strides."""
        precision = {"ALIGN": _alignment(*read), "PRECISION": self.config.precision}
        return self.constants | self.shape.widths | precision | {"num_warps": WARPS}

    @property
    def precise(self) -> bool:
        """Whether weights deserve more than float32 exponents."""
        return self.q.dtype == torch.float32

    @property
    def chunk_blocks(self) -> tuple[ChunkBlocks, ChunkBlocks]:
        """Of outputs and gradients."""
        if self.described:
            assert self.config.described is not None
            return self.config.described
        return self.config.outputs, self.config.gradients

    def blocks(self, blocks: ChunkBlocks, stages: int) -> dict[str, Any]:
        limit = {} if blocks.registers is None else {"maxnreg": blocks.registers}
        if self.q.dtype == torch.float16:
            stages = 1  # states are bfloat16: their products read tokens into registers too (`two_products`)
        return limit | {
            "BM": blocks.rows, "DESCRIBED": self.described, "PRECISE": self.precise,
            "num_stages": min(stages, blocks.stages),
        }  # fmt: skip

    @property
    def cap(self) -> float:
        return float(self.options.gate_soft_cap or 1.0)

    def new(self, *size: int) -> Tensor:
        return self.q.new_empty(*size, dtype=torch.float32)


class Walk(NamedTuple):
    """Grid of a walk over the chunks, and what goes from its first launch to its second."""

    tile: tuple[int, int]
    programs: int
    segments: int
    sums: tuple[Tensor, Tensor, Tensor]
    """Of C, n and the decay; unused with one segment."""

    @classmethod
    def of(cls, problem: Problem, blocks: WalkBlocks, unused: Tensor, cut: int | None) -> "Walk":
        shape = problem.shape
        BK, BV = (block_width(width, limit) for width, limit in zip(shape.padded, blocks.tile, strict=True))
        rows = shape.sequences * shape.heads
        programs = rows * (shape.padded[0] // BK) * (shape.padded[1] // BV)
        if cut is None:
            chunks = shape.chunks // max(1, shape.sequences)
            cut = segments(programs, chunks, _processors(problem.q.device))
        sums = (unused, unused, unused)
        if cut > 1:
            KP, VP = shape.padded
            sums = (
                problem.new(cut, rows, KP, VP),
                problem.new(cut, rows, KP),
                problem.new(cut, rows),
            )
        return cls((BK, BV), programs * cut, cut, sums)

    @property
    def launches(self) -> tuple[bool, ...]:
        """Values of TOTALS."""
        return (True, False) if self.segments > 1 else (False,)


class StateGradients(NamedTuple):
    """What `launch_state_gradients` leaves; see its kernel."""

    dC: Tensor
    dn: Tensor
    dr: Tensor
    dC0: Tensor | None
    dn0: Tensor | None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial: State | None,
    cu_seqlens: Tensor | None,
    want_state: bool,
    options: Options,
    config: SequenceConfig,
    cut: int | None = None,
    described: bool = False,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor], Saved]:
    """h, the final C, n (None unless wanted) and m, and what `backward` needs. `cut`: so many segments."""
    problem = Problem.of(q, k, v, i, f, cu_seqlens, options, config, described)
    saved = problem.shape.saved(q, config)
    m1 = launch_gates(problem, saved, initial[2] if initial else None)
    C1, n1 = launch_states(problem, saved, initial, want_state, cut)
    return launch_outputs(problem, saved), (C1, n1, m1), saved


def backward(
    dh: Tensor,
    d_final: tuple[Tensor, Tensor] | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    h: Tensor,
    has_initial: bool,
    cu_seqlens: Tensor | None,
    saved: Saved,
    options: Options,
    config: SequenceConfig,
    cut: int | None = None,
    described: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dq, dk, dv, di, df, and the gradients of the initial C and n if there are any."""
    problem = Problem.of(q, k, v, i, f, cu_seqlens, options, config, described)
    states = launch_state_gradients(problem, saved, dh, h, d_final, has_initial, cut)
    dq, dk, dv, dots, ends = launch_gradients(problem, saved, states, dh)
    di, df = launch_gate_gradients(problem, saved, states, dots, ends)
    return dq, dk, dv, di, df, states.dC0, states.dn0


def launch_gates(problem: Problem, saved: Saved, m0: Tensor | None) -> Tensor:
    """Fills the rows and bounds; m at the end (sequences, H)."""
    shape, i, f = problem.shape, problem.i, problem.f
    programs = shape.chunks * shape.heads
    m1 = problem.new(shape.sequences, shape.heads)
    numbers = (*problem.strides["i"], *problem.strides["f"], *shape.sizes, problem.cap)
    constants = problem.constants | problem.gates | {"num_warps": 1}
    call(bounds_kernel, programs, (i, f, saved.bounds, *problem.documents), numbers, **constants)
    call(
        scan_kernel, shape.sequences * shape.heads,
        (saved.bounds, m0, m1, *problem.documents[:2]), shape.sizes,
        **problem.constants, HAS_START=m0 is not None, TILE=SCAN_TILE, num_warps=1,
    )  # fmt: skip
    call(rows_kernel, programs, (i, f, saved.rows, saved.bounds, *problem.documents), numbers, **constants)
    return m1


def launch_states(
    problem: Problem, saved: Saved, initial: State | None, want_state: bool, cut: int | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Fills C and n; those of the end, if wanted."""
    shape, k, v, blocks = problem.shape, problem.k, problem.v, problem.config.states
    of_k, of_v = problem.strides["k"], problem.strides["v"]
    C0, n0, _ = initial or (None, None, None)
    C1, n1 = shape.state(problem.q) if want_state else (None, None)
    walk = Walk.of(problem, blocks, saved.bounds, cut)
    launch_token_sums(problem, saved, "k", STATE_WEIGHT, None, saved.n)
    for totals in walk.launches:
        call(
            states_kernel, walk.programs,
            (k, v, saved.rows, saved.bounds, saved.C, saved.n, C0, n0, C1, n1, *walk.sums,
             *problem.documents[:2]),
            (*of_k, *of_v, *shape.sizes, walk.segments), **problem.products(of_k, of_v),
            BK=walk.tile[0], BV=walk.tile[1], BT=blocks.tokens, TOTALS=totals,
            HAS_START=C0 is not None, HAS_END=want_state, num_stages=blocks.stages,
        )  # fmt: skip
    return C1, n1


def launch_outputs(problem: Problem, saved: Saved) -> Tensor:
    """h; fills the norms."""
    shape, blocks = problem.shape, problem.chunk_blocks[0]
    q, k, v = problem.q, problem.k, problem.v
    read = [problem.strides[name] for name in "qkv"]
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    BD, BR = block_width(shape.value_width, blocks.columns), block_width(shape.width, blocks.reduce)
    tiles = shape.padded[1] // BD * (problem.config.chunk // blocks.rows)
    descriptors: tuple[Any, ...] = (None,) * 3
    if problem.described:
        descriptors = (*(describe(x, blocks.rows, BR) for x in (q, k)), describe_states(saved.C, BR, BD))
    call(
        outputs_kernel, shape.chunks * shape.heads * tiles,
        (q, k, v, saved.rows, saved.C, saved.n, h, saved.norms, *problem.documents),
        (*read[0], *read[1], *read[2], *shape.sizes, problem.scale, float(problem.options.eps)),
        descriptors, **problem.products(*read), BR=BR, BD=BD,
        **problem.blocks(blocks, 1 + -(-shape.width // BR)),  # more stages only take shared memory
    )  # fmt: skip
    return h


def launch_state_gradients(
    problem: Problem,
    saved: Saved,
    dh: Tensor,
    h: Tensor,
    d_final: tuple[Tensor, Tensor] | None,
    has_initial: bool,
    cut: int | None = None,
) -> StateGradients:
    shape, q, blocks = problem.shape, problem.q, problem.config.state_gradients
    of_q, of_dh = problem.strides["q"], strides(dh)
    exact = problem.options.exact_norm
    dC1, dn1 = d_final or (None, None)
    walk = Walk.of(problem, blocks, saved.bounds, cut)
    dC = torch.empty_like(saved.C)
    dn, dr = saved.n, saved.norms  # as good as any where the kernel needs none
    if exact or d_final is not None:
        dn = problem.new(*problem.chunk_heads, shape.padded[0])
    if exact:
        dr = launch_norm_gradients(problem, saved, dh, h)
        launch_token_sums(problem, saved, "q", READ_WEIGHT, dr, dn)
    dC0, dn0 = shape.state(q) if has_initial else (None, None)
    for totals in walk.launches:
        call(
            state_gradients_kernel, walk.programs,
            (q, dh, saved.rows, saved.bounds, saved.norms, dC, dn, dC1, dn1, dC0, dn0, *walk.sums,
             *problem.documents[:2]),
            (*of_q, *of_dh, *shape.sizes, walk.segments, problem.scale),
            **problem.products(of_q, of_dh),
            BK=walk.tile[0], BV=walk.tile[1], BT=blocks.tokens, TOTALS=totals,
            EXACT=exact, HAS_START=has_initial, HAS_END=d_final is not None, num_stages=blocks.stages,
        )  # fmt: skip
    return StateGradients(dC, dn, dr, dC0, dn0)


def launch_token_sums(
    problem: Problem, saved: Saved, name: str, row: int, dr: Tensor | None, sums: Tensor
) -> None:
    """Fills sums: of q or k, by name."""
    shape, x, of_x = problem.shape, getattr(problem, name), problem.strides[name]
    BK = math.gcd(shape.padded[0], SUM_WIDTH)
    call(
        token_sums_kernel, shape.chunks * shape.heads * (shape.padded[0] // BK),
        (x, saved.rows, dr, sums, *problem.documents), (*of_x, *shape.sizes),
        K=shape.width, KP=shape.padded[0], BK=BK, ROW=row, HAS_DR=dr is not None, ALIGN=_alignment(of_x),
        **problem.constants,
    )  # fmt: skip


def launch_norm_gradients(problem: Problem, saved: Saved, dh: Tensor, h: Tensor) -> Tensor:
    """dr."""
    shape, L, of_dh = problem.shape, problem.config.chunk, strides(dh)
    dr = problem.new(*problem.chunk_heads, L)
    call(
        norm_gradients_kernel, shape.chunks * shape.heads * (L // NORM_TOKENS),
        (dh, h, saved.norms, dr, *problem.documents), (*of_dh, *shape.sizes),
        V=shape.value_width, BT=NORM_TOKENS, BV=block_width(shape.value_width, NORM_WIDTH),
        ALIGN=_alignment(of_dh), **problem.constants,
    )  # fmt: skip
    return dr


def launch_gradients(
    problem: Problem, saved: Saved, states: StateGradients, dh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and what the gates need: dots and ends."""
    shape, config, blocks = problem.shape, problem.config, problem.chunk_blocks[1]
    q, k, v = problem.q, problem.k, problem.v
    read = [*(problem.strides[name] for name in "qkv"), strides(dh)]
    BDK, BDV = (block_width(w, blocks.columns) for w in (shape.width, shape.value_width))
    BRK, BRV = (block_width(w, blocks.reduce) for w in (shape.width, shape.value_width))
    k_slices, v_slices = shape.padded[0] // BDK, shape.padded[1] // BDV
    ends = problem.new(v_slices, *problem.chunk_heads)
    dots = problem.new(4, k_slices, *problem.chunk_heads, config.chunk)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    programs = (2 * k_slices + v_slices) * (config.chunk // blocks.rows) + v_slices
    descriptors: tuple[Any, ...] = (None,) * 7
    if problem.described:
        tokens = (describe(x, blocks.rows, BR) for x, BR in ((q, BRK), (k, BRK), (v, BRV), (dh, BRV)))
        descriptors = (
            *tokens, describe_states(saved.C, BDK, BRV), describe_states(states.dC, BDK, BRV),
            describe_states(states.dC, BRK, BDV),
        )  # fmt: skip
    call(
        gradients_kernel, shape.chunks * shape.heads * programs,
        (q, k, v, dh, saved.rows, saved.bounds, saved.norms, saved.C, saved.n,
         states.dC, states.dn, states.dr, dq, dk, dv, dots, ends, *problem.documents),
        (*(number for each in read for number in each), *shape.sizes, problem.scale),
        descriptors, **problem.products(*read), BRK=BRK, BRV=BRV, BDK=BDK, BDV=BDV,
        EXACT=problem.options.exact_norm, WITH_DN=states.dn is not saved.n,
        **problem.blocks(blocks, blocks.stages),
    )  # fmt: skip
    return dq, dk, dv, dots, ends


def launch_gate_gradients(
    problem: Problem, saved: Saved, states: StateGradients, dots: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """di and df."""
    shape, i, f = problem.shape, problem.i, problem.f
    di, df = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (i, f))
    call(
        gate_gradients_kernel, shape.chunks * shape.heads,
        (i, f, dots, ends, saved.norms, states.dr, di, df, *problem.documents),
        (*problem.strides["i"], *problem.strides["f"], *shape.sizes, problem.cap, float(problem.options.eps)),
        **problem.constants, **problem.gates, SLICES=dots.shape[1],
        ENDS=ends.shape[0], EXACT=problem.options.exact_norm, num_warps=1,
    )  # fmt: skip
    return di, df


def _alignment(*read: Strides) -> int:
    """16 elements where every batch stride is a multiple of it: so for all batches and lengths."""
    return 16 if all(batch % 16 == 0 and time % 16 == 0 for batch, time, _ in read) else 1


@cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
