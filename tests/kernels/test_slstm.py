"""The sLSTM operator and its reference: against the float64 oracle, autograd and each other."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from kernels.slstm import State, slstm
from kernels.slstm.reference import slstm_recurrent, to_average
from tests.kernels.sequence_problems import load_oracle

KINDS = [("exp", True), ("sigmoid", True), ("exp", False), ("sigmoid", False)]


def problem(
    batch: int = 2,
    length: int = 17,
    heads: int = 2,
    width: int = 6,
    *,
    forget: float = 2.0,
    write: float = 0.0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs that `dtype` holds, in float64; `forget` and `write` are the means of the gates' biases."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=torch.float64)

    state, names = (batch, heads, width), ("y0", "c0", "n0", "m0", "dy", "du", "dL")
    b = normal(heads, 4, width)
    b[:, 0] += write
    b[:, 1] += forget
    return {
        "x": normal(batch, length, 4, heads, width).to(dtype).double(),
        "R": (normal(heads, width, 4, width) / width**0.5).to(dtype).double(),
        "b": b.float().double(),
        "dh": normal(batch, length, heads, width).to(dtype).double(),
        **{
            name: (normal(*state).exp() if name == "n0" else normal(*state)).float().double()
            for name in names
        },
    }


def run(
    p: dict[str, Tensor],
    function: Any = slstm,
    *,
    starts: bool = True,
    mixes: bool = True,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> dict[str, Tensor]:
    """Values, states and gradients by name."""
    wide = torch.promote_types(dtype, torch.float32)
    narrow = {name: p[name].to(dtype).requires_grad_() for name in ("x", "R")}
    leaves = narrow | {"b": p["b"].to(wide).requires_grad_()}
    first = None
    if starts:
        leaves |= {name: p[name].to(wide).requires_grad_() for name in ("y0", "c0", "n0", "m0")}
        first = State(*(leaves[name] for name in ("y0", "c0", "n0", "m0")))
    if not mixes:
        del leaves["R"]
    if function is slstm:
        options["return_final_state"] = True
    h, final = function(leaves["x"], leaves.get("R"), leaves["b"], initial_state=first, **options)
    normaliser = options.get("normaliser", True)
    y, u, L = to_average(final, normaliser)
    outputs = [(h, p["dh"].to(dtype)), (y, p["dy"]), (u, p["du"])] + ([(L, p["dL"])] if normaliser else [])
    grads = torch.autograd.grad(
        [o for o, _ in outputs],
        list(leaves.values()),
        [g.to(o.dtype) for o, g in outputs],
        materialize_grads=True,
    )
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"h": h.detach(), "y": y.detach(), "u": u.detach(), "L": L.detach(), **named}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative, in the 2-norm."""
    assert actual.keys() == expected.keys()
    for name, truth in expected.items():
        error = (actual[name].double() - truth.double()).norm()
        assert error <= tolerance * truth.norm() + 1e-30, f"{name}: {error / truth.norm():.1e}"


@pytest.mark.parametrize(("gate", "normaliser"), KINDS)
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("mixes", [False, True])
def test_the_operator_is_the_paper_s_cell(gate: str, normaliser: bool, starts: bool, mixes: bool) -> None:
    """Another form of the cell, and gradients by hand, against autograd through the paper's equations."""
    options: dict[str, Any] = {"input_gate": gate, "normaliser": normaliser, "starts": starts, "mixes": mixes}
    assert_close(run(problem(), **options), run(problem(), slstm_recurrent, **options), 1e-9)


@pytest.mark.parametrize("forget", [-8.0, 0.0, 8.0])
def test_matches_the_oracle(forget: float) -> None:
    oracle, p = load_oracle(), problem(length=40, forget=forget)
    Wx, R, b = (p[name].clone().requires_grad_() for name in ("x", "R", "b"))
    Y, (y, c, n, m), trace = oracle.slstm_fwd(Wx, R, b, tuple(p[name] for name in ("y0", "c0", "n0", "m0")))
    expected = {"h": Y, "y": y, "u": c / n, "L": m + n.log()}
    zeros = {name: torch.zeros_like(p[name]) for name in ("dy", "du", "dL")}
    ours = run(p | zeros)
    trace = [[part.detach() for part in step] for step in trace]
    expected |= dict(zip(("dx", "dR", "db"), oracle.slstm_bwd(trace, R.detach(), p["dh"]), strict=True))
    assert_close({name: ours[name] for name in expected}, {k: v.detach() for k, v in expected.items()}, 1e-9)


@pytest.mark.parametrize(("gate", "normaliser"), KINDS)
def test_gradients_by_finite_differences(gate: Any, normaliser: bool) -> None:
    p = problem(1, 4, 2, 3)
    leaves = [p[name].requires_grad_() for name in ("x", "R", "b", "y0", "c0", "n0", "m0")]

    def function(*parts: Tensor) -> tuple[Tensor, ...]:
        h, state = slstm(
            *parts[:3], initial_state=State(*parts[3:]), return_final_state=True, input_gate=gate,
            normaliser=normaliser,
        )  # fmt: skip
        return (h, state.c, state.m) if normaliser else (h, state.c)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=False)


@pytest.mark.parametrize(("gate", "normaliser"), KINDS)
def test_pieces_are_the_whole(gate: Any, normaliser: bool) -> None:
    p = problem(length=23)
    options: dict[str, Any] = {"input_gate": gate, "normaliser": normaliser}
    whole, end = slstm(p["x"], p["R"], p["b"], return_final_state=True, **options)
    state, parts = None, []
    for piece in p["x"].split([1, 7, 15], 1):
        h, state = slstm(piece, p["R"], p["b"], initial_state=state, return_final_state=True, **options)
        parts.append(h)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


def test_zeros_are_the_beginning() -> None:
    p = problem()
    zeros = State(*(torch.zeros_like(p["y0"]) for _ in State._fields))
    for normaliser in (True, False):
        begun = slstm(p["x"], p["R"], p["b"], initial_state=zeros, normaliser=normaliser)
        assert torch.equal(begun, slstm(p["x"], p["R"], p["b"], normaliser=normaliser))


def test_a_first_input_gate_that_is_nearly_shut() -> None:
    """exp(-100) underflows in float32; what it writes is all there is, so it counts in full."""
    p = problem(dtype=torch.float32)
    p["x"][:, :, 0] -= 100
    ours = slstm(p["x"].float(), p["R"].float(), p["b"].float())
    truth, _ = slstm_recurrent(p["x"], p["R"], p["b"])
    torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-5)


def test_sigmoid_gates_without_normaliser_are_an_lstm() -> None:
    """torch's own LSTM, gates i, f, z, o in the order of its weights."""
    p = problem(2, 9, 1, 5)
    cell = torch.nn.LSTM(20, 5, batch_first=True).double()
    with torch.no_grad():
        cell.weight_ih_l0.copy_(torch.eye(20))
        cell.weight_hh_l0.copy_(p["R"][0].flatten(1).T)
        cell.bias_ih_l0.copy_(p["b"][0].flatten())
        cell.bias_hh_l0.zero_()
    expected, _ = cell(p["x"].flatten(2))
    ours = slstm(p["x"], p["R"], p["b"], input_gate="sigmoid", normaliser=False)
    torch.testing.assert_close(ours.squeeze(2), expected, rtol=1e-12, atol=1e-12)


def test_one_graph_for_all_lengths() -> None:
    p, q = problem(length=9), problem(length=12)
    counter = CompileCounter()
    compiled = torch.compile(slstm, backend=counter, fullgraph=True, dynamic=True)
    for case in (p, q):
        torch.testing.assert_close(
            compiled(case["x"], case["R"], case["b"]), slstm(case["x"], case["R"], case["b"])
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("starts", [True, False])
def test_the_operator_is_well_registered(mixes: bool, starts: bool) -> None:
    p = problem(1, 3, 1, 2)
    leaves = [p[name].requires_grad_() if keep else None for name, keep in (
        ("x", True), ("R", mixes), ("b", True), ("y0", starts), ("c0", starts), ("m0", starts),
    )]  # fmt: skip
    torch.library.opcheck(torch.ops.isoflop.slstm_loop.default, (*leaves, False, True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 2, 3, 1, 4)}, r"x has shape \(1, 2, 3, 1, 4\): must be \(B, S, 4, H, D\)"),
        ({"R": torch.zeros(1, 4, 4, 5)}, r"R has shape \(1, 4, 4, 5\): must be \(1, 4, 4, 4\)"),
        ({"b": torch.zeros(1, 4)}, r"b has shape \(1, 4\): must be \(1, 4, 4\)"),
        ({"input_gate": "tanh"}, "input_gate = 'tanh'"),
        ({"initial_state": State(*torch.zeros(4, 2, 1, 4))}, r"initial_state y has shape \(2, 1, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    fields = {"x": torch.zeros(1, 2, 4, 1, 4), "R": torch.zeros(1, 4, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        slstm(**fields)
