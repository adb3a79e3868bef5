"""What the benchmark of inference measures, and in which order: models, engines, points."""

from dataclasses import dataclass, replace
from typing import Literal

from xlstm.accounting import mlstm_config, transformer_config
from xlstm.timing.points import DType, Point, TimedModel

VOCABULARY = 50_304
SIZES: dict[str, tuple[int, int, int, int]] = {
    "160M": (768, 12, 6, 12),
    "400M": (1024, 24, 4, 16),
    "1.4B": (2048, 24, 4, 16),
    "smoke": (128, 2, 1, 2),
}
"""d_model, blocks, heads of the mLSTM and of the Transformer: arXiv:2510.02228, appendix."""

PREFILLS = (2048, 4096, 8192, 16384, 32768, 65536)
BATCHES = (1, 4, 16, 64)
PEER_PREFILLS = (2048, 16384)
PEER_BATCHES = (1, 16, 64)
WHOLE_PREFILL = 65_536
"""Tokens of a batch up to which every prompt is prefilled and timed. Beyond, one prompt is, its state is
copied to the others, and only steps are timed."""
PEER_PREFILL = 32_768
"""The same for the peers, which are slower and take more memory."""
SMOKE_PREFILL = 600
GENERATED = 64
REPETITIONS = 3

Engine = Literal["ours", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: a model on an engine, at its points."""

    engine: Engine
    size: str
    arch: Literal["mlstm", "transformer"]
    points: tuple[Point, ...]
    graph: bool = True
    """Decode steps as a CUDA graph."""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.arch} {self.size}"

    @property
    def whole_prefill(self) -> int:
        if self.size == "smoke":
            return SMOKE_PREFILL
        return WHOLE_PREFILL if self.engine == "ours" else PEER_PREFILL

    def short_prefill(self, point: Point) -> int:
        """Tokens that each sequence of a batch with more than `whole_prefill` reads. Of the peers one: their
        prefill looks at all of the cache."""
        return self.whole_prefill // point.batch_size if self.engine == "ours" else 1


def model_of(size: str, arch: str) -> TimedModel:
    """The paper's shape; of the smoke test a tiny one."""
    d_model, blocks, mlstm_heads, heads = SIZES[size]
    vocabulary = 512 if size == "smoke" else VOCABULARY
    shape = {"d_model": d_model, "num_blocks": blocks, "vocab_size": vocabulary}
    if arch == "mlstm":
        return mlstm_config(num_heads=mlstm_heads, **shape)
    return transformer_config(num_heads=heads, **shape)


def make_jobs(
    sizes: list[str],
    prefills: list[int],
    batches: list[int],
    *,
    device: Literal["cpu", "cuda"],
    peers: bool,
    generated: int = GENERATED,
) -> list[Job]:
    """Ours first, the largest first, and the slowest peer last: what the targets speak of is measured even if
    time runs out."""
    dtype: DType = "bf16" if device == "cuda" else "fp32"
    order = [("ours", size, arch) for size in reversed(sizes) for arch in ("mlstm", "transformer")]
    if peers:
        order += [
            ("transformers", size, arch) for arch in ("transformer", "mlstm") for size in reversed(sizes)
        ]
    jobs = []
    for engine, size, arch in order:
        base = Point(
            model=model_of(size, arch),
            prefill_length=1,
            batch_size=1,
            generated=generated,
            dtype=dtype,
            repetitions=REPETITIONS,
            device=device,
        )
        lengths = [T for T in prefills if engine == "ours" or T in PEER_PREFILLS or size == "smoke"]
        counts = [B for B in batches if engine == "ours" or B in PEER_BATCHES or size == "smoke"]
        points = tuple(replace(base, prefill_length=T, batch_size=B) for B in counts for T in lengths)
        jobs.append(Job(engine=engine, size=size, arch=arch, points=points))  # type: ignore[arg-type]
    return jobs
