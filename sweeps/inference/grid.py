"""The points of a benchmark in the order of their measurement, and the ones that cannot fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from sweeps.fields import pick
from sweeps.inference.spec import Arch, BenchmarkSpec, Size
from sweeps.inference.table import complete
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.config import MLSTMConfig
from xlstm.timing.points import Point, TimedModel


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """A point under its key on a machine."""

    point: Point
    size: str
    key: str

    @property
    def name(self) -> str:
        p = self.point
        return f"{p.model.arch} {self.size} prefill {p.prefill_length} batch {p.batch_size}"


def plan_points(
    spec: BenchmarkSpec, device: Literal["cpu", "cuda"], machine: str
) -> tuple[PlannedPoint, ...]:
    """Every point of a grid: small models first, and of each size both architectures in turn, so that a
    benchmark that is cut off has measured something of both."""
    points = []
    for size in spec.sizes:
        for batch_size in sorted(spec.batch_sizes):
            for prefill_length in sorted(spec.prefill_lengths):
                for arch in spec.archs:
                    if size.archs is None or arch in size.archs:
                        point = Point(
                            model=model_config(spec, size, arch),
                            prefill_length=prefill_length,
                            batch_size=batch_size,
                            generated=spec.generated,
                            dtype=spec.dtype,
                            state_dtype=spec.state_dtype,
                            repetitions=spec.repetitions,
                            device=device,
                            threads=spec.threads,
                            seed=spec.seed,
                        )
                        points.append(PlannedPoint(point=point, size=size.name, key=point.key(machine)))
    return tuple(points)


def model_config(spec: BenchmarkSpec, size: Size, arch: Arch) -> TimedModel:
    """The shape of a size in an architecture, by the rules of the paper."""
    heads = pick(size.num_heads, arch)
    if arch == "mlstm":
        return mlstm_config(
            d_model=size.d_model,
            num_blocks=size.num_blocks,
            num_heads=heads,
            vocab_size=spec.vocab_size,
            ffn_multiple_of=spec.ffn_multiple_of,
            chunk_size=spec.chunk_size,
        )
    return transformer_config(
        d_model=size.d_model,
        num_blocks=size.num_blocks,
        num_heads=heads,
        vocab_size=spec.vocab_size,
        ffn_multiple_of=spec.ffn_multiple_of,
    )


def too_large(point: Point, memory_bytes: float) -> str | None:
    """Why a point cannot fit in so much memory, one line; None where it may."""
    needed = point.memory_bytes
    if needed <= memory_bytes:
        return None
    kind = "state" if isinstance(point.model, MLSTMConfig) else "cache"
    return f"weights and {kind} need {needed / 2**30:.1f} GiB of {memory_bytes / 2**30:.1f} GiB: not tried"


def planned_table(points: Sequence[PlannedPoint]) -> pl.DataFrame:
    """The points as rows of the table of measurements, without a result."""
    return complete(pl.DataFrame([planned_row(point) for point in points]))


def planned_row(planned: PlannedPoint) -> dict[str, object]:
    """What is known of a point before it is measured, in the columns of the table."""
    return {"point_key": planned.key, **planned.point.describe(planned.size)}
