"""A model made ready to train by the switches of an `Execution`: compiled blocks, checkpoints, attention."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from xlstm.training.execution import Execution

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""On Hopper cuDNN's causal attention takes half the time of torch's own flash attention. What cannot serve a
call, or is not allowed to for want of determinism, is passed over."""
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Environment variables of the compilers, and their folders below a cache folder."""
COMPILE_THREADS = "4"


def make_ready(model: nn.Module, execution: Execution) -> None:
    """Compile the blocks of a language model and checkpoint them, as asked; weights and their names stay.

    Blocks of one kind share one compiled graph: it is made once, whatever their number, and comes from disk
    in the next process.
    """
    if not (execution.compile or execution.checkpoint_blocks):
        return
    if execution.compile:  # linear maps have an autograd.Function, whose graphs are kept on disk if asked for
        from torch._functorch import config

        config.autograd_cache_allow_custom_autograd_functions = True
    for block in _blocks(model):
        forward: Callable[..., Any] = block.forward
        if execution.compile:
            forward = torch.compile(forward, dynamic=False)
        if execution.checkpoint_blocks:
            forward = partial(_checkpointed, block, forward)
        block.forward = forward  # type: ignore[method-assign]


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    # Nothing in a block is random.
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    backbone = cast("nn.Module", model.backbone)
    return iter(cast("nn.ModuleList", backbone.blocks))


def plain_blocks() -> AbstractContextManager[Any]:
    """Within it, compiled blocks run as they were written: for a forward pass of another shape or mode."""
    return cast("AbstractContextManager[Any]", torch.compiler.set_stance("force_eager"))


@contextmanager
def kernels_for(precision: str, device: torch.device) -> Iterator[None]:
    """The choice of a GPU's kernels during a training: attention, and products of float32 under bfloat16.

    Under autocast only the gates of the mLSTM multiply in float32; tensor cores round their factors to 11
    bits, eight times finer than the bfloat16 of all other products.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    if precision == "bf16":
        torch.set_float32_matmul_precision("high")
    try:
        with sdpa_kernel(FASTEST_FIRST, set_priority=True):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def determinism(arch: str, execution: Execution) -> Literal["warn"] | bool:
    """What to ask of a GPU, so that the same seed gives the same loss, if asked; a CPU gives it unasked.

    Attention's backward obeys the strict demand alone. The mLSTM repeats itself without, and its reference
    sums cumulatively, which the strict demand refuses.
    """
    # Filling new memory finds the use of uninitialised values; here it would only take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return execution.deterministic and (arch == "transformer" or "warn")


def keep_compiled_code(folder: Path) -> None:
    """Have compilers keep their work below `folder`, unless the environment names another place."""
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str(folder / name))
    # Each training would start as many helpers as there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", COMPILE_THREADS)
