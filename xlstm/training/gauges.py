"""What a GPU gives and takes in a training: share of its matrix peak, memory, power. A CPU says nothing."""

import time
from typing import Any

import torch

from xlstm.accounting import training_flops
from xlstm.run_spec import RunSpec
from xlstm.timing.measure import peak_memory


class Gauges:
    """Readings of one device. Power is that of the GPU, whoever uses it."""

    def __init__(self, spec: RunSpec, device: torch.device, peak: float | None, processes: int = 1) -> None:
        """`peak`: FLOP/s of the device's matrix units as measured; None: no share of it is given."""
        self.device = device
        self.flops_per_token = training_flops(spec.model, spec.context_length, spec.tokens) / spec.tokens
        self.peak = None if peak is None else peak * processes
        self._energy = Energy(device) if device.type == "cuda" else None

    def read(self, tokens_per_s: float) -> dict[str, float]:
        """Metrics of the time since the last reading, by name; those that there are."""
        found: dict[str, float] = {}
        if (mfu := self.mfu(tokens_per_s)) is not None:
            found["mfu"] = mfu
        if self.device.type == "cuda":
            found["memory_bytes"] = float(peak_memory(self.device))
        if self._energy is not None and (power := self._energy.mean_power_w()) is not None:
            found["power_w"] = power
        return found

    def overall_power_w(self) -> float | None:
        """Mean since the beginning, in watts."""
        return None if self._energy is None else self._energy.overall_power_w()

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation: FLOPs by our accounting over the peak."""
        return None if self.peak is None else self.flops_per_token * tokens_per_s / self.peak


class Energy:
    """A GPU's own counter of energy, through NVML where nvidia-ml-py is installed."""

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
            self._first = self._last = self._now()
        except Exception as error:  # no NVML, no permission, a device without the counter
            print(f"power is not measured: {type(error).__name__}: {error}", flush=True)
            self._handle = None

    def mean_power_w(self) -> float | None:
        """Mean since the last call, in watts; None where nobody measures."""
        if self._handle is None:
            return None
        before, self._last = self._last, self._now()
        return _power(before, self._last)

    def overall_power_w(self) -> float | None:
        """Mean since the beginning."""
        return None if self._handle is None else _power(self._first, self._now())

    def _now(self) -> tuple[float, float]:
        """Seconds of a clock, and joules."""
        return time.monotonic(), self._read(self._handle) / 1e3


def _power(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    seconds = after[0] - before[0]
    return (after[1] - before[1]) / seconds if seconds > 0 else None
