"""The sequence operator on its Triton kernels, in the interpreter, against the float64 oracle and our
reference.

Most run with tiny blocks (`tiny`), so that few tokens make several chunks, blocks of a chunk, slices of a
head and segments of a sequence; the configuration that users get runs as well.
"""

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.mlstm import mlstm, sequence_configs, sequence_launch
from kernels.mlstm.reference import mlstm_reference
from kernels.mlstm.sequence_configs import SequenceConfig
from kernels.mlstm.sequence_shapes import Options
from tests.kernels.sequence_problems import (
    EXACT,
    Problem,
    assert_close,
    load_oracle,
    random_problem,
    run,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs test_sequence_gpu instead")


def cut_in(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(sequence_launch, "segments", lambda programs, chunks, processors: count)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("gate", "i", "f", "exact_norm"),
    [
        ("exp", 0.0, 3.0, True),
        ("exp", 0.0, 3.0, False),
        ("exp", -10.0, 6.0, True),
        ("exp", 4.0, -10.0, True),
        ("sigmoid", 0.0, 3.0, True),
        ("sigmoid", 0.0, 3.0, False),
    ],
)
def test_matches_the_oracle(gate: Any, i: float, f: float, exact_norm: bool) -> None:
    """States in and out, their gradients, and the exact or the detached normaliser: an independent
    derivation."""
    oracle = load_oracle()
    problem = random_problem(1, 39, 1, 16, 20, i=i, f=f)
    ours = run(problem, "triton", input_gate=gate, exact_norm=exact_norm)
    assert_close(ours, by_oracle(oracle, problem, gate, exact_norm), EXACT)


def by_oracle(oracle: ModuleType, problem: Problem, gate: str, exact_norm: bool) -> dict[str, Tensor]:
    """Names as `run` gives them; the oracle puts heads first and wants whole chunks: here, one."""
    q, k, v, i, f = (x.transpose(1, 2) for x in problem.inputs)
    kind, dh = gate[:3], problem.entering[0].transpose(1, 2)
    h, (C, n, m), saved = oracle.mlstm_chunk_fwd(q, k, v, i, f, q.shape[2], state=problem.state, kind=kind)
    unit = m.exp()
    last = problem.entering[1] * unit[..., None, None], problem.entering[2] * unit[..., None]
    dq, dk, dv, di, df, dC0, dn0 = oracle.mlstm_chunk_bwd(
        saved, f, i, dh, last, kind=kind, exact_norm=exact_norm
    )
    tokens_first = [x.transpose(1, 2) for x in (dq, dk, dv, di, df)]
    values = [h.transpose(1, 2), C * unit[..., None, None], n * unit[..., None], *tokens_first, dC0, dn0]
    return dict(zip(("h", "C", "n", "dq", "dk", "dv", "di", "df", "dC0", "dn0"), values, strict=True))


@pytest.mark.parametrize("config", sequence_configs.SINGLE + sequence_configs.HALF, ids=lambda c: c.name)
def test_what_users_get(monkeypatch: pytest.MonkeyPatch, config: SequenceConfig) -> None:
    """Blocks of all configurations, in float32: the interpreter multiplies the bits of bfloat16 as
    integers."""
    monkeypatch.setattr(sequence_configs, "SINGLE", (config,))
    cut_in(monkeypatch, 2)
    problem = random_problem(1, config.chunk + 5, 1, 80, 40, i=-2.0, f=2.0)
    assert_close(run(problem, "triton"), run(problem, "reference"), EXACT)


@pytest.mark.usefixtures("tiny")
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # an example takes a second: to shrink one would take an hour
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    length=st.integers(1, 40),
    widths=st.tuples(st.integers(2, 18), st.integers(2, 18)),
    gate=st.sampled_from(["exp", "sigmoid"]),
    cap=st.sampled_from([None, 2.0]),
    starts=st.booleans(),
    ends=st.booleans(),
    segments=st.integers(1, 2),
)
@example(1, (3, 2), "exp", None, True, True, 3)
@example(33, (17, 16), "exp", 2.0, True, False, 2)
def test_any_length_and_width(
    length: int,
    widths: tuple[int, int],
    gate: Any,
    cap: float | None,
    starts: bool,
    ends: bool,
    segments: int,
) -> None:
    problem = random_problem(1, length, 1, *widths)
    options: dict[str, Any] = {
        "input_gate": gate, "gate_soft_cap": cap, "starts": starts, "ends": ends, "eps": 1e-3
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        cut_in(patch, segments)
        ours = run(problem, "triton", **options)
    assert_close(ours, run(problem, "reference", **options), EXACT, floor=1.0)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("segments", [3, 9])
def test_segments_change_nothing(monkeypatch: pytest.MonkeyPatch, segments: int) -> None:
    """Four chunks: the second of three segments is whole, the third empty, as are five of nine."""
    problem = random_problem(1, 100, 1, 8, 20)
    cut_in(monkeypatch, segments)
    assert_close(run(problem, "triton"), run(problem, "reference"), EXACT)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("lengths", "segments"), [([40, 0, 1, 33], 2), ([0, 64, 0], 1)], ids=str)
def test_packed_documents(monkeypatch: pytest.MonkeyPatch, lengths: list[int], segments: int) -> None:
    """Against the reference of each document alone; empty ones keep their state."""
    cut_in(monkeypatch, segments)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    problem = random_problem(1, sum(lengths), 1, 8, 17, rows=len(lengths))
    ours = run(problem, "triton", cu_seqlens=bounds.int())
    parts = []
    for row, (a, b) in enumerate(pairwise(bounds.tolist())):
        alone = Problem(
            [x[:, a:b] for x in problem.inputs],
            tuple(x[row : row + 1] for x in problem.state),  # type: ignore[arg-type]
            [problem.entering[0][:, a:b], *(x[row : row + 1] for x in problem.entering[1:])],
        )
        parts.append(run(alone, "reference"))
    along = {name: 0 if name in ("C", "n", "dC0", "dn0") else 1 for name in parts[0]}
    truth = {name: torch.cat([part[name] for part in parts], axis) for name, axis in along.items()}
    assert_close(ours, truth, EXACT)


@pytest.mark.usefixtures("tiny")
def test_a_document_sees_nothing_of_another() -> None:
    problem = random_problem(1, 45, 1, 8, 8, rows=2)
    bounds = torch.tensor([0, 25, 45])
    before = run(problem, "triton", cu_seqlens=bounds, starts=False, ends=False)
    for x in problem.inputs:
        x[:, :25] *= 50.0
    after = run(problem, "triton", cu_seqlens=bounds, starts=False, ends=False)
    for name in ("h", "dq", "dk", "dv", "di", "df"):
        assert torch.equal(before[name][:, 25:], after[name][:, 25:]), name
        assert not torch.equal(before[name][:, :25], after[name][:, :25]), name


@pytest.mark.usefixtures("tiny")
def test_a_sequence_in_two_pieces_is_the_sequence() -> None:
    q, k, v, i, f = (x.float() for x in random_problem(1, 50, 1, 8, 8).inputs)
    options: dict[str, Any] = {"eps": 0.0, "backend": "triton"}
    whole = mlstm(q, k, v, i, f, **options)
    first, state = mlstm(*(x[:, :37] for x in (q, k, v, i, f)), return_final_state=True, **options)
    second = mlstm(*(x[:, 37:] for x in (q, k, v, i, f)), initial_state=state, **options)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("bias", [-300.0, -88.0, 30.0])
def test_extreme_gates(bias: float) -> None:
    """Forget gates whose sigmoid is 0 or 1 in float32, beside ordinary ones."""
    problem = random_problem(1, 70, 1, 8, 8)
    problem.inputs[4][:, ::3] = bias
    assert_close(run(problem, "triton", ends=False), run(problem, "reference", ends=False), 1e-4)


@pytest.mark.usefixtures("tiny")
def test_a_small_normaliser_is_not_rounded() -> None:
    """q n near zero: a normaliser in 16 bits would leave nothing right of dq, and of h where it exceeds
    exp(-m)."""
    problem = random_problem(1, 70, 1, 16, 16, i=4.0)
    problem.inputs[1].sub_(problem.inputs[1].mean(-1, keepdim=True))
    problem.inputs[0].mul_(1e-2).add_(1.0)
    problem = Problem([x.float().double() for x in problem.inputs], problem.state, problem.entering)
    tolerance = {"dq": 2e-4, "else": 1e-4}
    assert_close(run(problem, "triton", starts=False), run(problem, "reference", starts=False), tolerance)


@pytest.mark.usefixtures("tiny")
def test_views_with_strides_of_their_own() -> None:
    """Slices of a fused projection, heads-first memory, a broadcast gradient, all inside memory that is not a
    number."""
    batch, length, heads, width, value_width = 2, 18, 2, 8, 12
    problem = random_problem(batch, length, heads, width, value_width)
    q, k, v, i, f = (x.float() for x in problem.inputs)
    fused = torch.full((batch, length, heads * (2 * width + value_width) + 9), float("nan"))
    parts = fused[..., 4:-5].split([heads * width, heads * width, heads * value_width], -1)
    views = [part.unflatten(-1, (heads, -1)) for part in parts]
    for view, x in zip(views, (q, k, v), strict=True):
        view.copy_(x)
    views[1] = k.transpose(1, 2).contiguous().transpose(1, 2)
    gates = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (i, f)]
    leaves = [x.detach().requires_grad_() for x in (*views, *gates)]
    h = mlstm(*leaves, backend="triton")
    dh = torch.tensor(0.7).expand(h.shape)
    grads = torch.autograd.grad(h, leaves, dh)
    true_leaves = [x.clone().requires_grad_() for x in problem.inputs]
    truth = mlstm_reference(*true_leaves)
    assert isinstance(truth, Tensor)
    true_grads = torch.autograd.grad(truth, true_leaves, dh.double())
    names = ("h", "dq", "dk", "dv", "di", "df")
    assert_close(
        dict(zip(names, (h.detach(), *grads), strict=True)),
        dict(zip(names, (truth.detach(), *true_grads), strict=True)),
        EXACT,
    )


GUARD = 256
"""Elements before and after every buffer."""


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("lengths", [None, [35, 0, 1, 3]], ids=["rows", "documents"])
def test_nothing_unwritten_is_read_and_nothing_outside_is_written(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int] | None
) -> None:
    """Every allocation of ours is not-a-number before and after it is filled, but for what the kernels
    own."""
    problem = random_problem(1, 39, 1, 20, 12, rows=4 if lengths else 1)
    options: dict[str, Any] = {}
    if lengths:
        options["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0)
    expected = run(problem, "reference", **options)
    cut_in(monkeypatch, 2)
    guards: list[tuple[Tensor, int]] = []

    def guarded(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = int(torch.Size(size).numel())
        buffer = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
        guards.append((buffer, count))
        return buffer[GUARD : GUARD + count].view(size)

    original = Tensor.new_empty

    def new_empty(self: Tensor, *size: Any, dtype: torch.dtype | None = None, **rest: Any) -> Tensor:
        if rest:  # not ours: the interpreter's
            return original(self, *size, dtype=dtype, **rest)
        flat = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return guarded(tuple(flat), dtype or self.dtype)

    def empty_like(like: Tensor, **_: Any) -> Tensor:
        return guarded(tuple(like.shape), like.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_empty", new_empty)
        patch.setattr(torch, "empty_like", empty_like)
        found = run(problem, "triton", **options)
    assert len(guards) > 15
    for buffer, count in guards:
        assert buffer[:GUARD].isnan().all()
        assert buffer[GUARD + count :].isnan().all()
    assert_close(found, expected, EXACT)


@pytest.mark.parametrize("width", [1, 16, 20, 64, 80, 96, 100, 192, 256, 320, 500, 512])
@pytest.mark.parametrize("config", sequence_configs.HALF + sequence_configs.SINGLE, ids=lambda c: c.name)
def test_blocks_divide_what_they_walk_over(config: SequenceConfig, width: int) -> None:
    """Kernels mask the width of a head, not that of the padded states: those are whole blocks of every
    kernel."""
    padded = sequence_configs.padded_width(width, config)
    assert width <= padded < width + 64
    for blocks in (config.outputs, config.gradients, *(config.described or ())):
        assert padded % sequence_configs.block_width(width, blocks.columns) == 0
        assert padded % sequence_configs.block_width(width, blocks.reduce) == 0
        assert config.chunk % blocks.rows == 0
    for walk in (config.states, config.state_gradients):
        assert all(padded % sequence_configs.block_width(padded, side) == 0 for side in walk.tile)
        assert config.chunk % walk.tokens == 0


def test_segments_fill_the_gpu_and_are_not_short() -> None:
    assert sequence_configs.segments(programs=512, chunks=64, processors=132) == 1
    assert sequence_configs.segments(programs=32, chunks=64, processors=132) == 9
    assert sequence_configs.segments(programs=32, chunks=8, processors=132) == 2
    assert sequence_configs.segments(programs=1, chunks=1, processors=132) == 1


def test_memory_of_a_chunk_needs_no_more_than_the_states(tiny: SequenceConfig) -> None:
    """What is saved for the backward pass, per chunk and head: the states and a few numbers for each
    token."""
    problem = random_problem(1, 64, 1, 16, 16)
    q, k, v, i, f = (x.float() for x in problem.inputs)
    options = Options(eps=1e-6, gate_soft_cap=None, sigmoid=False)
    _, _, saved = sequence_launch.forward(q, k, v, i, f, None, None, False, options, tiny)
    assert sum(x.numel() for x in saved) == 2 * (16 * 16 + 16 + 10 * 32 + 4)
