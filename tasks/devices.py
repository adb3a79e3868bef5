"""What this machine has for trainings: cores, memory, GPUs; and how many runs of a spec go there at once."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

from sweeps.plan import BYTES_PER_PARAMETER, PlannedRun
from sweeps.resources import Resources
from tasks.errors import UserError
from xlstm.training.execution import Execution
from xlstm.training.memory import fitting_micro_batch, predicted_bytes

HOST_SHARE = 0.9
"""Of the memory; the rest is for the system, the services and the flow."""
GPU_RUN_HOST_BYTES = 3 * 2**30
"""Host memory of a training on a GPU: CUDA's context and libraries."""
REPLICA_SHARE = 0.5
"""Of a GPU, at most, for weights, gradients and optimiser where every GPU of a run holds them all."""
USUAL_GPU_BYTES = 80 * 2**30
"""Of a GPU that cannot be asked, on a cluster."""
LOOK_AHEAD = 16
"""Runs that may wait for room where sizes differ, so that small ones find what large ones leave."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as the driver knows it."""

    name: str
    uuid: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Room for trainings."""

    threads: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a run takes of a machine while it trains."""

    device: Literal["cpu", "cuda"]
    threads: int
    memory_bytes: int
    """Of the host."""
    gpu_share: float = 0.0
    """Of each of its GPUs."""
    gpu_bytes: int = 0
    """Of each."""
    devices: int = 1
    """GPUs of this host, or processes on its CPU, that train the run together."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    expected_s: float | None = None
    """By the plan's estimate; None where nobody knows."""


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """NVIDIA GPUs that children of this process will see."""
    return [gpu.name for gpu in gpus()]


DRIVER_S = 30.0
"""Wait for the driver's answer."""


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that children of this process will see, in their order; asked of the driver."""
    return _gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _gpus(visible: str | None) -> tuple[Gpu, ...]:
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"nvidia-smi has no answer in {DRIVER_S:g} s: mend the driver, or set CUDA_VISIBLE_DEVICES= to do"
            " without a GPU"
        ) from None
    lines = asked.stdout.strip().splitlines() if asked.returncode == 0 else []
    found = [_gpu(line) for line in lines]
    if visible is None:
        return tuple(found)
    return tuple(gpu for entry in visible.split(",") for gpu in _named(found, entry.strip()))


def _gpu(line: str) -> Gpu:
    name, uuid, mebibytes = (field.strip() for field in line.rsplit(",", 2))
    if not mebibytes.isdecimal():
        raise UserError(
            f"nvidia-smi knows no memory of {name} ({mebibytes}): a GPU that shares the host's cannot be"
            " planned for; set CUDA_VISIBLE_DEVICES= to do without it"
        )
    return Gpu(name=name, uuid=uuid, memory_bytes=int(mebibytes) * 2**20)


def _named(found: list[Gpu], entry: str) -> list[Gpu]:
    """The GPU of an entry of CUDA_VISIBLE_DEVICES: an index, or the beginning of a UUID."""
    if entry.isdecimal():
        return found[int(entry) : int(entry) + 1]
    return [gpu for gpu in found if entry and gpu.uuid.startswith(entry)][:1]


def machine() -> Machine:
    """This machine, as far as this process's control group and affinity let it be used."""
    limits = [psutil.virtual_memory().total]
    for path in CGROUP_LIMITS:
        text = path.read_text().strip() if path.exists() else "max"
        if text != "max":
            limits.append(int(text))
    return Machine(threads=cpu_count(), memory_bytes=int(min(limits) * HOST_SHARE), gpus=gpus())


def device_kind(resources: Resources, here: Machine) -> Literal["cpu", "cuda"]:
    """Where runs of a spec train here; UserError where it asks for a GPU, or what only one can do, and none
    is visible."""
    if resources.device == "cuda" and not here.gpus:
        raise UserError("resources.device = cuda: no NVIDIA GPU is visible here; use auto or cpu")
    if resources.execution.cuda_graph and not here.gpus and resources.cluster is None:
        raise UserError(
            "resources.execution.cuda_graph = true: records steps of a GPU, and none is visible here; leave"
            " it out, or set resources.device to cuda where there is one"
        )
    return "cuda" if here.gpus and resources.device != "cpu" else "cpu"


def devices_of(run: PlannedRun, resources: Resources, most: int | None = None) -> int:
    """How many devices train a run together: as its size asks for, and no more than its batch has sequences.

    Any number gives the same run, so a machine that has fewer, `most`, gives all of them.
    """
    wanted = max(1, int(resources.gpus_of(run.N)))
    if run.spec.task is not None:  # a model of a capability suite is small
        return 1
    return min(wanted, run.spec.batch_size, most or wanted)


def strategy_of(run: PlannedRun, resources: Resources, gpus: Sequence[Gpu] = ()) -> Literal["ddp", "fsdp"]:
    """What each of a run's devices holds of it, on GPUs of these sizes, or of the usual one."""
    if resources.strategy != "auto":
        return resources.strategy
    room = min((gpu.memory_bytes for gpu in gpus), default=USUAL_GPU_BYTES)
    return "ddp" if REPLICA_SHARE * room >= run.N * BYTES_PER_PARAMETER else "fsdp"


def need(run: PlannedRun, resources: Resources, here: Machine) -> Need:
    """What a run takes here. One that is larger than the machine gets the whole of it, alone."""
    kind = device_kind(resources, here)
    devices = devices_of(run, resources, len(here.gpus) if kind == "cuda" else None)
    strategy = strategy_of(run, resources, here.gpus)
    whole = run.N * BYTES_PER_PARAMETER
    per_device = (run.memory_bytes - whole) // devices + (whole if strategy == "ddp" else whole // devices)
    if kind == "cuda" and devices == 1 and run.spec.task is None:
        per_device = _alone_on_gpu(run, resources, here)
    on_host = GPU_RUN_HOST_BYTES if kind == "cuda" else per_device
    return Need(
        device=kind,
        threads=min(resources.threads * devices, here.threads),
        memory_bytes=min(on_host * devices, here.memory_bytes),
        gpu_share=min(resources.gpus_of(run.N), 1.0) if kind == "cuda" else 0.0,
        gpu_bytes=per_device if kind == "cuda" else 0,
        devices=devices,
        strategy=strategy,
        expected_s=run.estimated_s / devices,
    )


def _alone_on_gpu(run: PlannedRun, resources: Resources, here: Machine) -> int:
    """Bytes of a GPU that a run takes with the micro-batch that it will choose for its share of one."""
    execution = Execution(**resources.execution.model_dump()).settled(run.spec, on_gpu=True)
    room = min(1.0, resources.gpus_of(run.N)) * min(gpu.memory_bytes for gpu in here.gpus)
    micro_batch = fitting_micro_batch(run.spec, execution, room) or run.spec.batch_size
    return int(predicted_bytes(run.spec, micro_batch, execution))


def shares_gpus(resources: Resources, here: Machine) -> bool:
    """Whether runs of a spec share GPUs here, and are to compute beside each other there."""
    asked = resources.gpus.values() if isinstance(resources.gpus, dict) else [resources.gpus]
    return resources.mps and device_kind(resources, here) == "cuda" and min(asked) < 1


def runs_at_once(resources: Resources, here: Machine) -> int:
    """How many runs of a spec this machine has cores and GPUs for, and no more than the spec allows."""
    counts = resources.gpu_counts
    least = min(counts)
    processes = max(1, int(least))
    room = max(1, here.threads // min(resources.threads * processes, here.threads))
    if device_kind(resources, here) == "cuda":
        gpus = len(here.gpus)
        room = min(room, gpus * int(1 / least + 1e-9) if least <= 1 else max(1, gpus // int(least)))
    if len(set(counts)) > 1:
        room += LOOK_AHEAD
    return min(room, resources.runs_in_parallel or room)
