"""One point measured: prompts of random tokens prefilled, tokens decoded, both timed, memory noted.

The time to first token runs from tokens on the device to the first token chosen, everything compiled and
warm. The step time is the mean over the tokens generated after it, greedy, each feeding the next.
"""

import resource
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from xlstm.timing.machine import processor_name, versions
from xlstm.timing.points import Measurement, Point

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LIMIT_ELEMENTS = {"cpu": 2**24, "cuda": 2**29}
_LIMIT_WIDTH = {"cpu": 1024, "cuda": 8192}


class Engine(Protocol):
    """A model that generates; what is timed. Tokens (B, S) in, chosen tokens (B,) out, all on the device."""

    decode: str
    """How a step is launched: `graph`, `eager`."""

    def reset(self) -> None:
        """Forget what was read."""
        ...

    def prefill(self, prompts: Tensor) -> Tensor:
        """Read these prompts after a reset; the first token of each."""
        ...

    def steps(self, count: int) -> Tensor:
        """Go on for `count` tokens; the last of each."""
        ...


def measure(point: Point, build: Callable[[Point], Engine]) -> Measurement:
    """Time a point on the engine that `build` makes.

    Whatever the engine raises, as for want of memory, is the caller's to name.
    """
    torch.manual_seed(point.seed)
    if point.device == "cpu":
        torch.set_num_threads(point.threads)
    device = torch.device(point.device)
    with torch.inference_mode():
        engine = build(point)
        prompts = torch.randint(
            point.model.vocab_size, (point.batch_size, point.prefill_length), device=device
        )
        ttft, steps = time_engine(engine, prompts, point.generated, point.repetitions)
    return Measurement(
        ttft_s=tuple(ttft),
        step_time_s=tuple(steps),
        memory_bytes=peak_memory(device),
        decode=engine.decode,
        device=device_name(device),
        versions=versions(),
    )


def time_engine(
    engine: Engine, prompts: Tensor, generated: int, repetitions: int
) -> tuple[list[float], list[float]]:
    """Seconds to the first token, and of a step, of each repetition. A first one, not counted, warms up; on a
    GPU a second, in which a prefill may be captured."""
    ttft, steps = [], []
    warm_ups = 2 if prompts.device.type == "cuda" else 1
    for repetition in range(warm_ups + repetitions):
        engine.reset()
        first = seconds(lambda: engine.prefill(prompts), prompts.device)
        each = seconds(lambda: engine.steps(generated), prompts.device) / generated
        if repetition >= warm_ups:
            ttft.append(first)
            steps.append(each)
    return ttft, steps


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of some work, what it left running on the device included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes that torch held on a GPU at once; on a CPU the most that the process did."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_limits(device: torch.device, dtype: torch.dtype, threads: int = 1) -> dict[str, float]:
    """What the device does at best, measured, a second: bytes copied (read and written), and matrix FLOPs."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    source = torch.ones(_LIMIT_ELEMENTS[device.type], device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), device)
    moved = 2 * source.numel() * source.element_size()
    n = _LIMIT_WIDTH[device.type]
    one, two = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    multiplied = _fastest(lambda: one @ two, device)
    return {"copy_bytes_per_s": moved / copied, "matmul_flops_per_s": 2 * n**3 / multiplied}


def _fastest(work: Callable[[], Any], device: torch.device, repetitions: int = 10) -> float:
    seconds(work, device)
    return min(seconds(work, device) for _ in range(repetitions))


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()
