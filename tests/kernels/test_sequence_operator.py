"""The sequence operator as torch and its users meet it: registration, compilation, choice of backend, and
what it refuses. In the interpreter; its numbers are in `test_sequence`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from kernels.backends import ENVIRONMENT_VARIABLE
from kernels.mlstm import mlstm, sequence_launch
from tests.kernels.sequence_problems import random_problem

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs test_sequence_gpu instead")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_opcheck(backend: str) -> None:
    problem = random_problem(1, 3, 1, 16, 16, rows=2)
    inputs = [x.float().requires_grad_() for x in problem.inputs]
    C0, n0, m0 = (x.float() for x in problem.state)
    tensors = (*inputs, C0.requires_grad_(), n0.requires_grad_(), m0, torch.tensor([0, 2, 3]))
    operators = {
        "triton": (torch.ops.isoflop.mlstm_forward.default, (True, 1e-6, 15.0, False, True, 0.25)),
        "reference": (torch.ops.isoflop.mlstm_reference.default, (1e-6, 15.0, "exp", True, 64)),
    }
    operator, options = operators[backend]
    torch.library.opcheck(operator, (*tensors, *options))


def test_gradcheck_of_the_reference_backend() -> None:
    problem = random_problem(1, 6, 2, 2, 3)
    leaves = [x.clone().requires_grad_() for x in (*problem.inputs, *problem.state)]

    def function(*x: Tensor) -> tuple[Tensor, ...]:
        h, (C, n, m) = mlstm(  # type: ignore[misc]
            *x[:5], initial_state=x[5:], return_final_state=True, eps=0.0, gate_soft_cap=4.0,
            backend="reference",
        )  # fmt: skip
        return h, C * m.exp()[..., None, None], n * m.exp()[..., None]

    assert torch.autograd.gradcheck(function, leaves)


class Layer(nn.Module):
    """What surrounds the cell in a model."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.project = nn.Linear(8, 2 * (4 + 4 + 4 + 1 + 1))
        self.out = nn.Linear(8, 8)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gates = self.project(x).split([8, 8, 8, 4], -1)
        heads = [part.unflatten(-1, (2, 4)) for part in (q, k, v)]
        h = mlstm(*heads, *gates.chunk(2, -1), gate_soft_cap=15.0, backend=self.backend)
        return self.out(h.flatten(2))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_compiles_whole_and_once_for_all_batches_and_lengths(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, graphs = Layer(backend), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=True)
    counts = []
    for batch, length in ((2, 3), (3, 5)):
        x = torch.randn(batch, length, 8)
        found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
        counts.append(graphs.frame_count)
    assert len(set(counts)) == 1
    layer.backend = "reference"
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_backend_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(1, 3, 1, 16, 16)
    inputs = [x.float() for x in problem.inputs]
    launched: list[str] = []
    launch = sequence_launch.launch_outputs
    monkeypatch.setattr(
        sequence_launch, "launch_outputs", lambda *x: [launched.append("triton"), launch(*x)][1]
    )
    mlstm(*inputs)
    assert launched == []
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "triton")
    mlstm(*inputs)
    assert launched == ["triton"]
    mlstm(*inputs, backend="reference")
    assert launched == ["triton"]
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(ValueError, match="kernel backend 'cuda'"):
        mlstm(*inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 4, 2, 9)}, r"k has shape .*: must be \(1, 4, 2, 8\)"),
        ({"v": torch.zeros(1, 5, 2, 8)}, "v has shape"),
        ({"i": torch.zeros(1, 4, 1)}, "i has shape"),
        ({"q": torch.zeros(4, 2, 8)}, "q has shape"),
        ({"v": torch.zeros(1, 4, 2, 513)}, "at most 512"),
        ({"v": torch.zeros(1, 4, 2, 8, dtype=torch.float16)}, "q, k, v are torch.float32"),
        ({"input_gate": "relu"}, "input_gate = 'relu'"),
        ({"initial_state": tuple(torch.zeros(2, 2, *x) for x in ((8, 8), (8,), ()))}, "initial_state C"),
        ({"cu_seqlens": torch.tensor([0, 2])}, "cu_seqlens must rise from 0 to the 4 tokens"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(1, 4, 2, 8) for name in "qkv"}
    arguments |= {name: torch.zeros(1, 4, 2) for name in "if"} | change
    with pytest.raises((ValueError, RuntimeError), match=message):
        mlstm(**arguments, backend="triton")


def test_documents_are_one_row() -> None:
    q, gate = torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1)
    with pytest.raises(ValueError, match="one row, but the batch has 2"):
        mlstm(q, q, q, gate, gate, cu_seqlens=torch.tensor([0, 4]), backend="triton")
