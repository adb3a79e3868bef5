"""How the sequence kernels are launched: what is kept between calls, descriptors, and the short way past
torch's dispatcher."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from kernels.mlstm import mlstm, sequence, sequence_calls, sequence_check, sequence_configs
from kernels.mlstm.sequence_calls import call, describable
from kernels.mlstm.sequence_check import Trial, problem_error
from tests.kernels.sequence_problems import EXACT, TINY

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs test_sequence_gpu instead")


class Compiled:
    """Of a kernel with parameters x, number, SIZE."""

    arg_names = ("x", "number", "SIZE")

    def __init__(self) -> None:
        self.compiled = self.run = 0
        self.last: tuple[Any, ...] = ()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> "Compiled":
            self.last = grid[0], *arguments, *constants.values()
            self.compiled += bool(constants)
            self.run += 1
            return self

        return launch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    monkeypatch.setattr(sequence_calls, "_compiled", {})
    monkeypatch.setattr(sequence_calls, "_compiled_type", lambda: Compiled)
    return Compiled()


def test_a_kernel_is_looked_up_once(kernel: Compiled) -> None:
    x, y = torch.zeros(16), torch.ones(16)
    for programs, tensor in ((3, x), (5, y)):
        call(kernel, programs, (tensor,), (7,), SIZE=16)
        assert kernel.last[0] == programs
        assert kernel.last[1] is tensor
        assert kernel.last[2:] == (7, 16)
    assert (kernel.compiled, kernel.run) == (1, 2)


@pytest.mark.parametrize(
    ("tensor", "number", "size"),
    [
        (torch.zeros(16), 8, 16),
        (torch.zeros(16), 7, 32),
        (torch.zeros(16, dtype=torch.bfloat16), 7, 16),
        (torch.zeros(17)[1:], 7, 16),
    ],
    ids=["number", "constant", "dtype", "address"],
)
def test_what_compiled_code_depends_on_is_looked_up_again(
    kernel: Compiled, tensor: Tensor, number: int, size: int
) -> None:
    call(kernel, 1, (torch.zeros(16),), (7,), SIZE=16)
    call(kernel, 1, (tensor,), (number,), SIZE=size)
    assert kernel.compiled == 2


def test_addresses_that_16_bytes_do_not_divide_are_left_to_triton(kernel: Compiled) -> None:
    for _ in range(2):
        call(kernel, 1, (torch.zeros(17)[1:],), (7,), SIZE=16)
    assert kernel.compiled == 2


def test_what_descriptors_can_read() -> None:
    x = torch.zeros(2, 4, 3, 16, dtype=torch.bfloat16)
    fused = torch.zeros(2, 4, 3, 3, 16, dtype=torch.bfloat16)
    assert describable(x, fused[:, :, 1], x.transpose(1, 2))
    assert not describable(x.transpose(-1, -2))
    assert not describable(x[..., 1:])
    assert not describable(x[:1].expand(2, -1, -1, -1))
    assert not describable(torch.zeros(2, 4, 3, 20, dtype=torch.bfloat16))


@pytest.mark.parametrize("widths", [(16, 32), (48, 80), (80, 16)])
def test_descriptors_read_the_same(widths: tuple[int, int]) -> None:
    """Tails of sequences, chunks of two blocks and more, heads wider than a block and narrower."""
    blocks = replace(TINY.outputs, columns=32)
    config = replace(TINY, outputs=blocks, gradients=blocks, described=(blocks, blocks))
    trial = Trial(
        config="tiny", dtype="float32", width=widths[0], value_width=widths[1], starts=True, ends=True,
        described=True,
    )  # fmt: skip
    error = problem_error(trial, torch.device("cpu"), config=config, batch=1, heads=2, length=45, repeats=1)
    assert error < EXACT


def test_descriptors_only_where_they_are_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """And worth it, and possible."""
    tried: list[Trial] = []
    monkeypatch.setattr(sequence_check, "LARGE", 64)
    monkeypatch.setattr(sequence_check, "WIDE", 16)
    monkeypatch.setattr(sequence_check, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    error = 1e-3
    monkeypatch.setattr(sequence_check, "_verdict", lambda trial, device: [tried.append(trial), error][1])
    config = sequence_configs.HALF[0]
    x = torch.zeros(1, 4, 1, 16, dtype=torch.bfloat16)
    assert sequence_check.described(config, x, x, x)
    assert [trial.described for trial in tried] == [True]
    assert not sequence_check.described(config, x, x, x, packed=True)
    assert not sequence_check.described(config, x[:, :1], x[:, :1], x[:, :1])
    assert not sequence_check.described(config, x, x[..., :1].expand_as(x), x)
    assert not sequence_check.described(sequence_configs.SINGLE[0], x, x, x)
    narrow = x[..., :8]
    assert not sequence_check.described(config, narrow, narrow, x)
    monkeypatch.setattr(sequence_check, "WIDE", 8)
    assert sequence_check.described(config, narrow, narrow, x)
    monkeypatch.setattr(sequence_check, "WIDE", 16)
    assert not sequence_check.described(config, x.half(), x.half(), x.half())
    error = 1.0
    assert not sequence_check.described(config, x, x, x)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    error = 1e-3
    assert not sequence_check.described(config, x, x, x)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def test_the_short_way_is_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same values, gradients and states, bit by bit; a mode sees the registered operator."""
    monkeypatch.setattr(sequence_configs, "SINGLE", (TINY,))
    torch.manual_seed(0)
    leaves = [torch.randn(2, 40, 2, 16).requires_grad_() for _ in range(3)]
    leaves += [torch.randn(2, 40, 2).requires_grad_() for _ in range(2)]
    start = tuple(torch.randn(2, 2, *size).requires_grad_() for size in ((16, 16), (16,), ()))
    found = []
    for mode in (None, Seen()):
        if mode is None:
            h, state = mlstm(*leaves, initial_state=start, return_final_state=True, backend="triton")
        else:
            with mode:
                h, state = mlstm(*leaves, initial_state=start, return_final_state=True, backend="triton")
            assert "isoflop.mlstm_forward.default" in mode.names
        loss = h.square().sum() + state[0].sum() + state[1].square().sum()
        found.append([h, *state, *torch.autograd.grad(loss, [*leaves, *start])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_short_way_is_differentiable_once() -> None:
    q = torch.randn(1, 3, 1, 16, requires_grad=True)
    gate = torch.zeros(1, 3, 1)
    h = mlstm(q, q, q, gate, gate, backend="triton")
    (gradient,) = torch.autograd.grad(h.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="mlstm_backward"):
        gradient.sum().backward()


def test_compilers_transforms_and_subclasses_intercept() -> None:
    class Other(Tensor):
        pass

    x = torch.zeros(2)
    assert not sequence._intercepted(x, torch.nn.Parameter(x))
    assert sequence._intercepted(x.as_subclass(Other))
    with Seen():
        assert sequence._intercepted(x)
    assert torch.vmap(lambda y: y * sequence._intercepted(y))(x + 1).tolist() == [1, 1]
