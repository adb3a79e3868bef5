"""Which configuration of the sequence kernels may be used here: the first that has given the right numbers
here.

    python -m kernels.mlstm.sequence_check '{"config": "half-32x32", "dtype": "bfloat16", ...}'

is the process that tries one (`kernels.trials`): a random problem of the kind that is asked for (dtype,
widths, packed documents, states, exact normaliser), forward and backward, against the reference in float64.
When no configuration is left to try, that is an error.
"""

import json
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import trials
from kernels.backends import interpreted
from kernels.mlstm.reference import State, mlstm_reference
from kernels.mlstm.sequence_configs import LARGE, WIDE, SequenceConfig, candidates

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
"""Of a whole tensor, relative to its norm: far above rounding, far below what a wrong kernel does."""

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried. Kernels are compiled for each of these."""

    config: str
    dtype: str
    width: int
    value_width: int
    packed: bool = False
    """Documents in one row."""
    starts: bool = False
    """From an initial state."""
    ends: bool = False
    """With a final state, and a gradient of it."""
    exact_norm: bool = True
    described: bool = False
    """With descriptors."""


def checked_config(q: Tensor, v: Tensor, **kind: bool) -> SequenceConfig:
    """The configuration for tensors like q and v, which may be fake, and a `kind` of problem, by the fields
    of a Trial. In the interpreter, the first.

    Raises:
        RuntimeError: none passes, or a CUDA graph is being captured before any was tried.
    """
    tried = []
    for config in candidates(q.dtype):
        if q.device.type != "cuda" or interpreted():
            return config
        trial = _trial(config, q, v, **kind)
        if _verdict(trial, q.device) <= TOLERANCE[trial.dtype]:
            return config
        tried.append(config.name)
    raise RuntimeError(
        f"no mLSTM kernel configuration gives right results here for {trial}: tried {', '.join(tried)}; "
        'the log says why; backend="reference" needs none'
    )


def described(
    config: SequenceConfig, q: Tensor, k: Tensor, v: Tensor, *, packed: bool = False, **kind: bool
) -> bool:
    """Whether these tensors are to be read through descriptors: they can be, it is worth it, and it gives
    the right numbers here."""
    from kernels.mlstm.sequence_calls import describable

    if config.described is None or packed or interpreted():
        return False
    if q.numel() + v.numel() < LARGE or q.shape[-1] < WIDE:
        return False
    if q.dtype != torch.bfloat16:  # states are: a product with them reads float16 tokens into registers too
        return False
    if not describable(q, k, v) or torch.cuda.get_device_capability(q.device) < (9, 0):
        return False
    trial = _trial(config, q, v, described=True, **kind)
    return _verdict(trial, q.device) <= TOLERANCE[trial.dtype]


def _trial(config: SequenceConfig, q: Tensor, v: Tensor, **kind: bool) -> Trial:
    return Trial(
        config=config.name, dtype=str(q.dtype).removeprefix("torch."), width=int(q.shape[-1]),
        value_width=int(v.shape[-1]), **kind,
    )  # fmt: skip


def _verdict(trial: Trial, device: torch.device) -> float:
    return trials.verdict(trial, device, __name__, TOLERANCE[trial.dtype])


def _named(trial: Trial) -> SequenceConfig:
    return next(c for c in candidates(getattr(torch, trial.dtype)) if c.name == trial.config)


def problem_error(
    trial: Trial,
    device: torch.device,
    *,
    config: SequenceConfig | None = None,
    batch: int = 8,
    heads: int = 8,
    length: int = 450,
    repeats: int = REPEATS,
) -> float:
    """Largest relative error of h, states and gradients; infinite if any is not finite or changes between
    runs.

    `config`, if it is not in the table. Every sequence is cut into two segments, and its length has a tail.
    """
    config = config or _named(trial)
    inputs, initial, cu_seqlens = _problem(trial, device, batch, heads, length)
    expected = _expected(trial, inputs, initial, cu_seqlens)
    return trials.largest_error(
        lambda: _ours(trial, config, inputs, initial, cu_seqlens), expected, device, repeats
    )


Inputs = tuple[Tensor, ...]
"""q, k, v, i, f, and the gradients of h, C and n."""


def _problem(
    trial: Trial, device: torch.device, batch: int, heads: int, length: int
) -> tuple[Inputs, State | None, Tensor | None]:
    generator = torch.Generator(device).manual_seed(length)
    dtype = getattr(torch, trial.dtype)
    K, V, rows, cu_seqlens = trial.width, trial.value_width, batch, None
    size = (batch, length, heads)
    if trial.packed:
        size = (1, batch * length, heads)
        ends = [0, 1, *(length * n - 7 * n for n in range(2, batch)), batch * length]
        cu_seqlens = torch.tensor(ends, device=device)
        rows = len(ends) - 1

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    tokens = [draw(*size, width, dtype=dtype) for width in (K, K, V, V)]
    states = [draw(rows, heads, K, V), draw(rows, heads, K)]
    q, k, v, dh = tokens
    initial = (draw(rows, heads, K, V), draw(rows, heads, K), draw(rows, heads)) if trial.starts else None
    return (q, k, v, draw(*size) - 4, draw(*size) + 3, dh, *states), initial, cu_seqlens


def _ours(
    trial: Trial, config: SequenceConfig, inputs: Inputs, initial: State | None, cu_seqlens: Tensor | None
) -> list[Tensor]:
    from kernels.mlstm.sequence_launch import backward, forward
    from kernels.mlstm.sequence_shapes import Options

    q, k, v, i, f, dh, dC, dn = inputs
    options = Options(eps=1e-6, gate_soft_cap=15.0, sigmoid=False, exact_norm=trial.exact_norm)
    h, (C, n, m), saved = forward(
        q, k, v, i, f, initial, cu_seqlens, trial.ends, options, config, cut=2, described=trial.described
    )
    d_final = (dC, dn) if trial.ends else None
    *gradients, dC0, dn0 = backward(
        dh, d_final, q, k, v, i, f, h, trial.starts, cu_seqlens, saved, options, config, cut=2,
        described=trial.described,
    )  # fmt: skip
    return [x for x in (h, m, C, n, *gradients, dC0, dn0) if x is not None]


def _expected(trial: Trial, inputs: Inputs, initial: State | None, cu_seqlens: Tensor | None) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [x.double().requires_grad_() for x in inputs[:5]]
        state: State | None = None
        if initial is not None:
            C0, n0, m0 = (x.double() for x in initial)
            state = C0.requires_grad_(), n0.requires_grad_(), m0
            leaves += [C0, n0]
        h, (C, n, m) = mlstm_reference(
            *leaves[:5], initial_state=state, cu_seqlens=cu_seqlens, return_final_state=True,
            gate_soft_cap=15.0, exact_norm=trial.exact_norm,
        )  # fmt: skip
        outputs = [(h, inputs[5])] + ([(C, inputs[6]), (n, inputs[7])] if trial.ends else [])
        grads = torch.autograd.grad([y for y, _ in outputs], leaves, [dy.double() for _, dy in outputs])
    return [x.detach() for x in (h, m, *([C, n] if trial.ends else []), *grads)]


def main(request: str) -> None:
    """Try what the request says."""
    fields = json.loads(request)
    device = torch.device("cuda", fields.pop("device"))
    with torch.cuda.device(device), torch.no_grad():
        trials.answer(problem_error(Trial(**fields), device))


if __name__ == "__main__":
    main(sys.argv[1])
