"""Which configuration of the sequence kernels may be used here: the first that has just given the right numbers.

A Triton that the configurations were not written for may refuse to compile one, or miscompile it without a word. So
the first use of a configuration for a dtype and a pair of head widths in a process runs a small problem forward and
backward against the reference. One that fails is reported and the next is tried; when none is left, that is an error.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from kernels.backends import interpreted
from kernels.mlstm import sequence_launch
from kernels.mlstm.reference import mlstm_reference
from kernels.mlstm.sequence_configs import SequenceConfig, candidates

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Of a whole tensor, relative to its norm: far above rounding, far below what a wrong kernel does."""

Key = tuple[str, torch.device, torch.dtype, int, int]
_errors: dict[Key, float] = {}


def checked_config(q: Tensor, v: Tensor) -> SequenceConfig:
    """The configuration for tensors like q and v.

    Raises:
        RuntimeError: no configuration passes, or a CUDA graph is being captured before any was checked.
    """
    for config in candidates(q.dtype):
        key = (config.name, q.device, q.dtype, q.shape[-1], v.shape[-1])
        if key not in _errors:
            _errors[key] = 0.0 if interpreted() else _check(config, key)
        if _errors[key] <= TOLERANCE[q.dtype]:
            return config
    raise RuntimeError(f"no mLSTM kernel configuration gives right results here for {key[1:]}")


def checked_errors() -> dict[Key, float]:
    """What has been checked in this process, and its largest error; infinite where it did not run."""
    return dict(_errors)


def _check(config: SequenceConfig, key: Key) -> float:
    _, device, dtype, width, value_width = key
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("mLSTM kernels: run the model once before capturing a CUDA graph, so that they are checked")
    try:
        with ThreadPoolExecutor(1) as fresh:  # an operator's body excludes autograd, which the reference needs
            error = fresh.submit(problem_error, config, device, dtype, width, value_width).result()
    except Exception as problem:  # what a compiler raises is not one class
        logger.warning("mLSTM kernels: configuration %s does not run: %s", config.name, str(problem)[-300:])
        return float("inf")
    if error > TOLERANCE[dtype]:
        logger.warning("mLSTM kernels: configuration %s is wrong here by %.1e, not used", config.name, error)
    else:
        logger.info("mLSTM kernels: configuration %s, %s, heads %d/%d, error %.1e", *key[:1], dtype, *key[3:], error)
    return error


@torch.no_grad()
def problem_error(
    config: SequenceConfig, device: torch.device, dtype: torch.dtype, width: int, value_width: int, length: int = 300
) -> float:
    """Largest relative error of h and the five gradients on a fresh random problem; infinite if any is not finite."""
    generator = torch.Generator(device).manual_seed(length)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(2, length, 2, *shape, generator=generator, device=device).to(dtype)

    q, k, v, dh = (draw(w, dtype=dtype) for w in (width, width, value_width, value_width))
    i, f = draw() - 4, draw() + 3
    options = sequence_launch.Options(eps=1e-6, gate_soft_cap=None, sigmoid=False)
    h, _, saved = sequence_launch.forward(q, k, v, i, f, None, None, False, options, config)
    *ours, _, _ = sequence_launch.backward(
        dh, None, q, k, v, i, f, h, None, False, None, saved, options, config
    )
    with torch.enable_grad():
        inputs = [x.double().requires_grad_() for x in (q, k, v, i, f)]
        expected = mlstm_reference(*inputs)
        assert isinstance(expected, Tensor)
        theirs = torch.autograd.grad(expected, inputs, dh.double())
    errors = [_relative(a, b) for a, b in zip([h, *ours], [expected, *theirs], strict=True)]
    return max(errors)


def _relative(x: Tensor, reference: Tensor) -> float:
    error = float((x.double() - reference).norm() / reference.norm())
    return error if error == error else float("inf")
