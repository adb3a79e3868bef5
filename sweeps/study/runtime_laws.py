"""Runtime models as laws of the engine: sums of terms that are never negative, fitted to relative errors.

TTFT: t = F / rate + overhead. Step time: t = bytes / bandwidth + overhead + B per_sequence. Each term is the
exponential of its parameter, so no overhead can come out below zero as in the published fits.
"""

import numpy as np

from sweeps.laws import Law, Term
from sweeps.laws.forms import Array


class Runtime(Law):
    """t = work / rate + overhead (+ B per_sequence), in seconds."""

    inputs: tuple[str, ...]

    def __init__(self, *, name: str, rate: str, per_sequence: bool) -> None:
        self.name = name
        self.inputs = ("work", "B") if per_sequence else ("work",)
        self.params = (rate, "overhead", "per_sequence") if per_sequence else (rate, "overhead")
        tail = " + B per_sequence" if per_sequence else ""
        self.formula = f"t = work / {rate} + overhead{tail}"
        self.per_sequence = per_sequence

    @property
    def focus(self) -> str:
        return self.params[0]

    def terms(self, theta: Array, x: Array) -> tuple[Term, ...]:
        first = Term(theta[:, 0:1] + x[0], {0: 1.0})
        overhead = Term(theta[:, 1:2], {1: 1.0})
        if not self.per_sequence:
            return first, overhead
        return first, overhead, Term(theta[:, 2:3] + x[1], {2: 1.0})

    def to_public(self, theta: Array, center: Array) -> Array:
        columns = [np.exp(center[0] - theta[:, 0]), np.exp(theta[:, 1])]
        if self.per_sequence:
            columns.append(np.exp(theta[:, 2] - center[1]))
        return np.stack(columns, axis=1)

    def from_public(self, params: Array, center: Array) -> Array:
        columns = [center[0] - np.log(params[:, 0]), np.log(params[:, 1])]
        if self.per_sequence:
            columns.append(np.log(params[:, 2]) + center[1])
        return np.stack(columns, axis=1)

    def starts(self, level: float) -> Array:
        shares = np.array([0.05, 0.3, 0.7, 0.95])
        if not self.per_sequence:
            return level + np.log(np.stack([1 - shares, shares], axis=1))
        rest = np.array([(s, o, 1 - s - o) for s in (0.1, 0.4, 0.8) for o in (0.05, 0.1, 0.15)])
        return level + np.log(rest)


TTFT = Runtime(name="ttft", rate="flops_per_s", per_sequence=False)
STEP = Runtime(name="step", rate="bytes_per_s", per_sequence=True)
STEP_OVERHEAD = Runtime(name="step-overhead", rate="bytes_per_s", per_sequence=False)
