"""The reference against the float64 oracle, the recurrent form, finite differences and separate documents."""

import importlib.util
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.mlstm.reference import State, empty_state, mlstm_recurrent, mlstm_reference, recurrent_step

ORACLE = Path(__file__).parents[2].parent / "shared" / "oracle" / "xlstm_fp64.py"
GATES = [("exp", 0.0, 3.0), ("exp", -10.0, 4.5), ("exp", 3.0, 0.0), ("sigmoid", 0.0, 3.0)]
"""Input gate, and the mean of the pre-activations of both gates."""


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    if not ORACLE.exists():
        pytest.skip("the float64 oracle is not beside this checkout")
    spec = importlib.util.spec_from_file_location("xlstm_fp64", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_inputs(
    batch: int,
    length: int,
    heads: int,
    width: int,
    value_width: int,
    i: float = 0.0,
    f: float = 3.0,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    gates = normal(batch, length, heads) + i, normal(batch, length, heads) + f
    keys = normal(batch, length, heads, width), normal(batch, length, heads, width)
    return [*keys, normal(batch, length, heads, value_width), *gates]


def random_state(rows: int, heads: int, width: int, value_width: int, seed: int = 1) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, heads, width, value_width), (rows, heads, width), (rows, heads)
    C, n, m = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return C, n, m


def leaves(tensors: Any) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def physical(state: State) -> tuple[Tensor, Tensor]:
    C, n, m = state
    return C * m.exp()[..., None, None], n * m.exp()[..., None]


def weigh(tensors: Any) -> Tensor:
    """A scalar with a different weight on every element."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        total = total + (tensor * torch.randn(tensor.shape, dtype=torch.float64, generator=generator)).sum()
    return total


def close(actual: Tensor, expected: Tensor, floor: float = 0.0) -> None:
    """Relative error at most 1e-9, relative to `floor` where the truth is smaller than that."""
    error = (actual - expected).norm()
    assert error <= 1e-9 * expected.norm().clamp_min(floor), f"{error:.1e} off {expected.norm():.1e}"


@pytest.mark.parametrize("exact_norm", [True, False])
@pytest.mark.parametrize(("input_gate", "i", "f"), GATES)
def test_agrees_with_the_oracle_in_values_states_and_gradients(
    oracle: ModuleType, input_gate: Any, i: float, f: float, exact_norm: bool
) -> None:
    inputs, state = random_inputs(2, 96, 2, 8, 12, i, f), random_state(2, 2, 8, 12)
    grown, grown_state = leaves(inputs), leaves(state)
    h, (C, n, m) = mlstm_reference(
        *grown, initial_state=tuple(grown_state), return_final_state=True, input_gate=input_gate,
        exact_norm=exact_norm, chunk_size=20,
    )  # fmt: skip
    swapped = [x.transpose(1, 2) for x in inputs]
    h_true, state_true, saved = oracle.mlstm_chunk_fwd(*swapped, 32, state=state, kind=input_gate[:3])
    for actual, expected in zip((h.transpose(1, 2), C, n, m), (h_true, *state_true), strict=True):
        close(actual, expected)

    dh, dC, dn = (torch.randn_like(x) for x in (h, C, n))
    torch.autograd.backward((h, C, n), (dh, dC, dn))
    expected_grads = oracle.mlstm_chunk_bwd(
        saved,
        swapped[4],
        swapped[3],
        dh.transpose(1, 2),
        (dC, dn),
        kind=input_gate[:3],
        exact_norm=exact_norm,
    )
    actual_grads = [x.grad.transpose(1, 2) for x in grown] + [x.grad for x in grown_state[:2]]
    for actual, expected in zip(actual_grads, expected_grads, strict=True):
        close(actual, expected)


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 40),
    chunk_size=st.integers(1, 48),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    gate=st.sampled_from(GATES),
    soft_cap=st.sampled_from([None, 2.0, 15.0]),
    with_state=st.booleans(),
)
def test_chunkwise_equals_recurrent(
    length: int, chunk_size: int, widths: tuple[int, int], gate: Any, soft_cap: float | None, with_state: bool
) -> None:
    """Values, states, and the gradients that autograd finds through the recurrence."""
    input_gate, i, f = gate
    inputs = random_inputs(2, length, 3, *widths, i, f)
    states = leaves(random_state(2, 3, *widths)) if with_state else None
    options = {"return_final_state": True, "eps": 0.0, "gate_soft_cap": soft_cap, "input_gate": input_gate}
    results = []
    for form, extra in ((mlstm_reference, {"chunk_size": chunk_size}), (mlstm_recurrent, {})):
        grown = leaves(inputs)
        grown_state = tuple(leaves(states)) if states else None
        h, state = form(*grown, initial_state=grown_state, **options, **extra)
        sources = [*grown, *(grown_state or ())]
        grads = torch.autograd.grad(
            weigh([h, *physical(state)]), sources, materialize_grads=True, allow_unused=True
        )
        results.append([h, *state, *grads])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, floor=1.0)


def test_an_empty_sequence_keeps_the_state() -> None:
    state = random_state(2, 3, 4, 5)
    h, final = mlstm_reference(*random_inputs(2, 0, 3, 4, 5), initial_state=state, return_final_state=True)
    assert h.shape == (2, 0, 3, 5)
    assert all(torch.equal(after, before) for after, before in zip(final, state, strict=True))


def test_gradients_by_finite_differences() -> None:
    inputs, state = random_inputs(1, 7, 2, 2, 3), random_state(1, 2, 2, 3)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        h, final = mlstm_reference(
            *tensors[:5], initial_state=tensors[5:], return_final_state=True, eps=0.0, chunk_size=3
        )  # fmt: skip
        return h, *physical(final)

    assert torch.autograd.gradcheck(function, leaves([*inputs, *state]))


def test_a_second_derivative_is_refused() -> None:
    grown = leaves(random_inputs(1, 4, 1, 2, 2))
    (grad,) = torch.autograd.grad(mlstm_reference(*grown).sum(), grown[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_sequence_in_two_pieces_is_the_sequence() -> None:
    """The state is handed over, and the gradient comes back through it."""
    inputs = random_inputs(2, 23, 2, 3, 4)
    whole, pieces = leaves(inputs), leaves(inputs)
    h = mlstm_reference(*whole, eps=0.0, chunk_size=8)
    first, state = mlstm_reference(
        *[x[:, :9] for x in pieces], eps=0.0, chunk_size=8, return_final_state=True
    )
    rest = mlstm_reference(*[x[:, 9:] for x in pieces], eps=0.0, chunk_size=8, initial_state=state)
    close(torch.cat([first, rest], 1), h)
    for actual, expected in zip(
        torch.autograd.grad(weigh([torch.cat([first, rest], 1)]), pieces),
        torch.autograd.grad(weigh([h]), whole),
        strict=True,
    ):
        close(actual, expected)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6), chunk_size=st.integers(1, 24))
def test_packed_documents_equal_separate_documents(lengths: list[int], chunk_size: int) -> None:
    """Values, final states and gradients: to the last bit of nothing else, empty documents included."""
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    inputs, state = random_inputs(1, sum(lengths), 2, 3, 4), random_state(len(lengths), 2, 3, 4)
    packed, packed_state = leaves(inputs), leaves(state)
    options = {"return_final_state": True, "chunk_size": chunk_size}
    h, final = mlstm_reference(*packed, initial_state=tuple(packed_state), cu_seqlens=cu_seqlens, **options)

    separate, separate_state = leaves(inputs), leaves(state)
    results = [
        mlstm_reference(
            *[x[:, a:b] for x in separate],
            initial_state=tuple(x[d : d + 1] for x in separate_state),
            **options,
        )
        for d, (a, b) in enumerate(pairwise(cu_seqlens))
    ]
    h_true = torch.cat([result[0] for result in results], 1)
    final_true = tuple(torch.cat(parts) for parts in zip(*(result[1] for result in results), strict=True))
    grads = torch.autograd.grad(weigh([h, *final[:2]]), packed + packed_state)
    grads_true = torch.autograd.grad(weigh([h_true, *final_true[:2]]), separate + separate_state)
    for actual, expected in zip((h, *final, *grads), (h_true, *final_true, *grads_true), strict=True):
        close(actual, expected, floor=1.0)


def test_a_document_sees_nothing_of_another() -> None:
    inputs = random_inputs(1, 20, 2, 3, 4)
    cu_seqlens = torch.tensor([0, 6, 20])
    before = mlstm_reference(*inputs, cu_seqlens=cu_seqlens, chunk_size=4)
    for x in inputs:
        x[:, :6] = 1e3
    after = mlstm_reference(*inputs, cu_seqlens=cu_seqlens, chunk_size=4)
    assert torch.equal(before[:, 6:], after[:, 6:])


def test_extreme_gates_stay_finite_in_float32() -> None:
    inputs = [x.float() for x in random_inputs(1, 300, 2, 4, 4)]
    inputs[3][:, ::3] = -300.0
    inputs[3][:, 1::5] = 300.0
    inputs[4][:, ::2] = -300.0
    inputs[4][:, 1::4] = 300.0
    grown = leaves(inputs)
    h = mlstm_reference(*grown)
    h.sum().backward()
    for tensor in (h, *(x.grad for x in grown)):
        assert tensor is not None
        assert torch.isfinite(tensor).all()


def test_half_precision_inputs_are_computed_in_float32_and_returned_in_the_dtype_of_v() -> None:
    q, k, v, i, f = (x.float() for x in random_inputs(2, 33, 2, 4, 4))
    half = [x.bfloat16() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        h, state = mlstm_reference(*half, i, f, return_final_state=True)
    assert h.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in state)
    assert torch.equal(h, mlstm_reference(*[x.float() for x in half], i, f).bfloat16())


def test_one_step_continues_a_sequence() -> None:
    inputs = random_inputs(2, 9, 2, 3, 4)
    _, state = mlstm_reference(*[x[:, :8] for x in inputs], return_final_state=True)
    step, state = recurrent_step(*[x[:, 8] for x in inputs], state)
    h_true, state_true = mlstm_reference(*inputs, return_final_state=True)
    for actual, expected in zip((step, *state), (h_true[:, 8], *state_true), strict=True):
        close(actual, expected)


def test_the_empty_state_is_the_default() -> None:
    inputs = random_inputs(2, 9, 2, 3, 4)
    state = empty_state(2, 2, 3, 4, dtype=torch.float64)
    assert torch.equal(mlstm_reference(*inputs, initial_state=state), mlstm_reference(*inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 8, 2, 5)}, r"k has shape \(2, 8, 2, 5\): must be \(2, 8, 2, 4\)"),
        ({"i": (2, 8, 1)}, r"i has shape \(2, 8, 1\): must be \(2, 8, 2\)"),
        ({"cu_seqlens": torch.tensor([0, 8])}, "one row, but the batch has 2"),
        ({"q": (8, 2, 4)}, r"q has shape \(8, 2, 4\)"),
        ({"chunk_size": 0}, "chunk_size = 0"),
        ({"input_gate": "relu"}, "input_gate = 'relu'"),
    ],
)
def test_wrong_arguments_name_the_culprit(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = dict(zip("qkvif", random_inputs(2, 8, 2, 4, 4), strict=True))
    for name, value in change.items():
        arguments[name] = torch.zeros(value) if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=message):
        mlstm_reference(**arguments)


def test_documents_must_cover_the_row() -> None:
    with pytest.raises(ValueError, match="must rise from 0 to S = 8"):
        mlstm_reference(*random_inputs(1, 8, 2, 4, 4), cu_seqlens=torch.tensor([0, 5]))
