"""A point of a grid of inference measurements, what is known after it, and the key that says the same thing.

Light: no torch here.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xlstm.accounting import BytesPerElement, count_parameters, parameters_by_part, state_bytes
from xlstm.config import MLSTMConfig, TransformerConfig

MEASURING_VERSION = 1
"""Raise it when the same point would mean another number; points measured before are measured again."""

TimedModel = MLSTMConfig | TransformerConfig
"""The architectures that decode from a state or a cache, and can be timed."""

DType = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]
BYTES: dict[DType, int] = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model, one prefill length, one batch: what determines a measurement, apart from the machine."""

    model: TimedModel
    prefill_length: int
    batch_size: int
    generated: int = 100
    """Decode steps over which the step time is a mean."""
    dtype: DType = "bf16"
    """Of weights, activations and cache."""
    state_dtype: DType = "fp32"
    """Of the mLSTM's state."""
    repetitions: int = 3
    device: Device = "cuda"
    threads: int = 1
    """On a CPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prefill_length", "batch_size", "generated", "repetitions", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")

    @property
    def stored(self) -> BytesPerElement:
        size = BYTES[self.dtype]
        return BytesPerElement(activations=size, weights=size, state=BYTES[self.state_dtype])

    @property
    def memory_bytes(self) -> int:
        """Weights, and the state or cache after the last token: what cannot be done without."""
        weights = count_parameters(self.model) * BYTES[self.dtype]
        seen = self.prefill_length + self.generated
        return weights + state_bytes(self.model, seen, batch_size=self.batch_size, bytes_per=self.stored)

    @property
    def step_bytes(self) -> float:
        """What no decode step can do without moving: the weights, and the state read and written or the cache
        read, in the middle of the tokens generated."""
        embedding = parameters_by_part(self.model).embedding
        weights = (count_parameters(self.model) - embedding) * BYTES[self.dtype]
        seen = self.prefill_length + self.generated // 2
        kept = state_bytes(self.model, seen, batch_size=self.batch_size, bytes_per=self.stored)
        passes = 2 if isinstance(self.model, MLSTMConfig) else 1
        return float(weights + passes * kept)

    def describe(self, size: str) -> dict[str, Any]:
        """The point in the columns of a table of measurements; `size` names the model."""
        model = self.model
        return {
            "arch": model.arch,
            "model": size,
            "N": float(count_parameters(model)),
            "d_model": model.d_model,
            "num_blocks": model.num_blocks,
            "num_heads": model.num_heads,
            "ffn_dim": model.ffn_dim,
            "vocab_size": model.vocab_size,
            "chunk_size": model.chunk_size if isinstance(model, MLSTMConfig) else None,
            "prefill_length": self.prefill_length,
            "batch_size": self.batch_size,
            "generated": self.generated,
            "dtype": self.dtype,
            "state_dtype": self.state_dtype,
        }

    def key(self, machine: str) -> str:
        """SHA-256 of the point, of the version of the measurement and of `machine`, which names device and
        torch."""
        fields = {"version": MEASURING_VERSION, "machine": machine, "point": asdict(self)}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Point":
        fields: dict[str, Any] = json.loads(text)
        return Point(**{**fields, "model": model_of(fields["model"])})


def model_of(fields: dict[str, Any]) -> TimedModel:
    """A configuration from its fields."""
    return (MLSTMConfig if fields["arch"] == "mlstm" else TransformerConfig)(**fields)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a point took. Times in seconds."""

    ttft_s: tuple[float, ...]
    """Each repetition: from tokens on the device to the first token chosen."""
    step_time_s: tuple[float, ...]
    """Each repetition: mean over the generated tokens."""
    memory_bytes: int
    """Peak of the device, or of the process on a CPU."""
    decode: str
    """How a step is launched: `graph`, `eager`."""
    device: str
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Measurement":
        fields = json.loads(text)
        return Measurement(**{**fields, **{name: tuple(fields[name]) for name in ("ttft_s", "step_time_s")}})
