"""Runtime of inference: the authors' fits repeated (PAPER 3.4, 4.7), and ours.

Theirs minimise the sum of the *squared* Huber values of one bootstrap resample, seed 0, that the objective
draws by default. Ours take every row, minimise relative errors, keep every term above zero, read the weights
at every step, and carry intervals. For an mLSTM the bytes of a step are a constant plus B times a constant,
so that bandwidth, overhead and time per sequence of the published form cannot be told apart: it is fitted
without the last, and the engine's refusal of the full form is kept as evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from scipy.optimize import least_squares
from scipy.special import stdtrit

from sweeps.laws import Estimate, FitError, Law, LawFit, LawSettings, fit_arrays
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.runtime_laws import STEP, STEP_OVERHEAD, TTFT
from xlstm.accounting import count_parameters, decode_bytes, forward_flops, prefill_flops
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig

Kind = Literal["ttft", "step_time"]
KINDS: tuple[Kind, ...] = ("ttft", "step_time")
_SMALLEST_BATCH = 8
"""Step times are fitted from here on, as the authors do: below it kernels run in another regime."""
_TTFT_DELTA_MS = 1.0
GENERATED = 100
"""Tokens over which a step time was averaged."""


@dataclass(frozen=True, kw_only=True)
class PublishedFit:
    """t = work / rate + overhead (+ B per_sequence), by the authors' objective."""

    rate: float
    """FLOP/s or bytes/s."""
    overhead: float
    """s."""
    per_sequence: float
    """s for each sequence of the batch; 0 for the TTFT."""
    mape: float
    """Mean absolute relative error on every row."""
    objective: float
    """Sum of squared Huber values on the rows fitted."""


@dataclass(frozen=True, kw_only=True)
class RuntimeFit:
    """One model size, one kind of time."""

    arch: str
    model: str
    kind: Kind
    n: int
    unique_used: int
    """Distinct rows of the authors' resample."""
    resampled: PublishedFit
    """On the resample of seed 0: what is published."""
    all_rows: PublishedFit
    """The same objective on every row."""
    ours: LawFit | None
    ours_mape: float
    one_rate: LawFit | None = None
    """Of a Transformer's step: weights and cache at one bandwidth, which the times do not bear out."""
    one_rate_mape: float = float("nan")
    weight_bytes: float = 0.0
    """Read at every step."""
    refusal: str = ""
    """Why the published form cannot be fitted; empty where it can."""


_SHAPE = ("d_model", "num_blocks", "num_heads", "ffn_dim", "vocab_size")


def model_config(row: Mapping[str, Any]) -> ModelConfig:
    """The shape of a measured model, from the columns of the table of measurements."""
    whole: dict[str, Any] = {name: int(row[name]) for name in _SHAPE}
    if row["arch"] == XLSTM:
        head = whole["d_model"] // whole["num_heads"]
        return MLSTMConfig(**whole, head_dim_qk=head // 2, chunk_size=int(row["chunk_size"]))
    return TransformerConfig(**whole)


def paper_measurements(inference: pl.DataFrame) -> pl.DataFrame:
    """The rows that the authors fit, where the table tells them from others."""
    if "measurement_set" in inference.columns:
        inference = inference.filter(pl.col("measurement_set") == "paper")
    return inference.filter(pl.col("d_model").is_not_null())


def fit_runtimes(
    inference: pl.DataFrame, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[RuntimeFit, ...]:
    """TTFT and step time of every measured model, by both methods; empty for a table without rows."""
    table = paper_measurements(inference)
    settings = LawSettings(estimator="ls-log", resamples=resamples, level=level, seed=seed)
    models = (
        table.select("arch", "model", "N")
        .unique(maintain_order=True)
        .sort("arch", "N", descending=[True, False])
    )
    return tuple(
        _fit(table.filter(pl.col("model") == model), arch, model, kind, settings)
        for kind in KINDS
        for arch, model in models.select("arch", "model").iter_rows()
    )


def _rows(table: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    keep = (pl.col("prefill_length") > 0) & pl.col(_column(kind)).is_finite()
    return table.filter(keep if kind == "ttft" else keep & (pl.col("batch_size") >= _SMALLEST_BATCH))


def _column(kind: Kind) -> str:
    return "ttft_s" if kind == "ttft" else "step_time_s"


def _fit(table: pl.DataFrame, arch: str, model: str, kind: Kind, settings: LawSettings) -> RuntimeFit:
    rows = _rows(table, kind)
    config = model_config(rows.row(0, named=True))
    T, B = (rows[name].to_numpy().astype(float) for name in ("prefill_length", "batch_size"))
    seconds = rows[_column(kind)].to_numpy()
    theirs = their_prefill_flops(config, T, B) if kind == "ttft" else their_step_bytes(config, T, B)
    repeat = published_ttft if kind == "ttft" else published_step_time
    drawn = np.random.default_rng(0).integers(0, len(seconds), len(seconds))
    ours, refusal = _ours(config, kind, T, B, seconds, settings)
    one_rate = None
    if kind == "step_time" and not isinstance(config, MLSTMConfig):
        one_rate, _ = _attempt(STEP, {"work": our_step_bytes(config, T, B), "B": B}, seconds, settings)
    return RuntimeFit(
        arch=arch,
        model=model,
        kind=kind,
        n=len(seconds),
        unique_used=len(np.unique(drawn)),
        resampled=repeat(theirs, B, seconds, drawn),
        all_rows=repeat(theirs, B, seconds, np.arange(len(seconds))),
        ours=ours,
        ours_mape=_mape(ours),
        one_rate=one_rate,
        one_rate_mape=_mape(one_rate),
        weight_bytes=weight_bytes(config),
        refusal=refusal,
    )


def _mape(fit: LawFit | None) -> float:
    return float("nan") if fit is None else float(np.mean(np.abs(np.expm1(-fit.residuals))))


def published_ttft(
    work: np.ndarray, batch: np.ndarray, seconds: np.ndarray, rows: np.ndarray
) -> PublishedFit:
    """Squared Huber(1 ms) of absolute errors; `rows` are the ones fitted."""
    F, t = work[rows], seconds[rows]

    def values(p: np.ndarray) -> np.ndarray:
        return _huber(1e3 * (F / (1e14 * p[0]) + 1e-3 * p[1] - t), _TTFT_DELTA_MS)

    best, lowest = _lm(values, [2.0, 1.0])
    predicted = work / (1e14 * best[0]) + 1e-3 * best[1]
    return PublishedFit(
        rate=float(1e14 * best[0]),
        overhead=float(1e-3 * best[1]),
        per_sequence=0.0,
        mape=float(np.mean(np.abs(predicted / seconds - 1))),
        objective=lowest,
    )


def published_step_time(
    work: np.ndarray, batch: np.ndarray, seconds: np.ndarray, rows: np.ndarray
) -> PublishedFit:
    """Squared halves of squared errors of ln t (no residual reaches their delta of 100)."""
    M, B, log_t = work[rows], batch[rows], np.log(seconds[rows])

    def residual(p: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.log(M / (1e12 * p[0]) + 1e-3 * p[1] + 1e-6 * p[2] * B) - log_t
        return np.nan_to_num(r, nan=10.0)

    first, _ = _lm(residual, [1.5, 1.0, 10.0])
    best, lowest = _lm(lambda p: 0.5 * residual(p) ** 2, first)
    rate, overhead, each = best * [1e12, 1e-3, 1e-6]
    return PublishedFit(
        rate=float(rate),
        overhead=float(overhead),
        per_sequence=float(each),
        mape=float(np.mean(np.abs((work / rate + overhead + each * batch) / seconds - 1))),
        objective=lowest,
    )


def _lm(
    values: Callable[[np.ndarray], np.ndarray], start: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, float]:
    """Levenberg and Marquardt, as the authors do: parameters, and the sum of squared values there."""
    found = least_squares(values, start, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=20000)
    return found.x, float(2 * found.cost)


def _huber(r: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(r)
    return np.where(size <= delta, 0.5 * r**2, delta * (size - 0.5 * delta))


def their_prefill_flops(config: ModelConfig, prefill: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """As the authors count: 0.65 of a full attention matrix, 0.75 of an mLSTM chunk."""
    pairs = zip(prefill, batch, strict=True)
    return np.array([prefill_flops(config, int(T), batch_size=int(B)) for T, B in pairs])


def their_step_bytes(config: ModelConfig, prefill: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """As the authors count: a Transformer's weights once in 100 steps."""
    pairs = zip(prefill, batch, strict=True)
    found = [decode_bytes(config, int(T), batch_size=int(B), accounting="paper") for T, B in pairs]
    return np.array(found, dtype=float)


def our_prefill_flops(config: ModelConfig, prefill: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """By `xlstm.accounting`: the forward pass, causal half of the attention, the head for the last token."""
    counted = {int(T): forward_flops(config, int(T)) for T in np.unique(prefill)}
    one = [counted[int(T)].total - counted[int(T)].logits * (1 - 1 / T) for T in prefill]
    return np.asarray(batch, dtype=float) * np.array(one)


def our_step_bytes(config: ModelConfig, prefill: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """By `xlstm.accounting`, at the middle of the tokens generated: weights, activations, cache or state."""
    middle = GENERATED // 2  # the cache grows while the step time is averaged
    pairs = zip(prefill, batch, strict=True)
    return np.array([decode_bytes(config, int(T) + middle, batch_size=int(B)) for T, B in pairs], dtype=float)


def weight_bytes(config: ModelConfig) -> float:
    """Bytes of the weights that a step reads: all but the embedding, two bytes each."""
    return 2.0 * (count_parameters(config) - config.d_model * config.vocab_size)


def _ours(
    config: ModelConfig, kind: Kind, T: np.ndarray, B: np.ndarray, seconds: np.ndarray, settings: LawSettings
) -> tuple[LawFit | None, str]:
    """Our fit, and why the published form cannot be fitted.

    A Transformer's step reads its weights (a constant, which the overhead takes in) at another rate than its
    cache, whose bandwidth is the one fitted.
    """
    if kind == "ttft":
        return _attempt(TTFT, {"work": our_prefill_flops(config, T, B)}, seconds, settings)
    inputs = {"work": our_step_bytes(config, T, B), "B": B}
    if not isinstance(config, MLSTMConfig):
        return _attempt(STEP, inputs | {"work": inputs["work"] - weight_bytes(config)}, seconds, settings)
    # work = a + b B exactly: three columns that span two dimensions, whatever the times are.
    design = np.stack([inputs["work"], np.ones_like(B), B], axis=1)
    rank = np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0), tol=1e-9)
    fitted, failed = _attempt(STEP_OVERHEAD, inputs, seconds, settings)
    collinear = (
        f"bytes, 1 and B span {rank} dimensions: rate, overhead and time per sequence cannot be told apart"
    )
    return fitted, failed or (collinear if rank < 3 else "")


def _attempt(
    law: Law, inputs: Mapping[str, np.ndarray], seconds: np.ndarray, settings: LawSettings
) -> tuple[LawFit | None, str]:
    try:
        return fit_arrays(law, inputs, seconds, settings), ""
    except FitError as error:
        return None, str(error)


@dataclass(frozen=True, kw_only=True)
class TimeRatio:
    """Measured time of the xLSTM over the Transformer of the same nominal size, one sequence."""

    kind: Kind
    prefill: int
    sizes: tuple[str, ...]
    ratios: tuple[float, ...]
    mean: Estimate
    """Geometric mean over the sizes, with Student's interval: sizes are the only replicates there are."""


def time_ratios(inference: pl.DataFrame, *, batch: int = 1, level: float = 0.95) -> tuple[TimeRatio, ...]:
    """At every prefill length where two sizes or more of both architectures were measured."""
    table = paper_measurements(inference).filter(pl.col("batch_size") == batch)
    table = table.with_columns(size=pl.col("model").str.split("_").list.last())
    found = []
    for kind in KINDS:
        column = _column(kind)
        sides = [
            table.filter((pl.col("arch") == arch) & pl.col(column).is_finite()).select(
                "size", "prefill_length", "N", pl.col(column).alias(arch)
            )
            for arch in (XLSTM, TRANSFORMER)
        ]
        both = sides[0].join(sides[1].drop("N"), on=["size", "prefill_length"]).sort("prefill_length", "N")
        for (prefill,), part in both.partition_by(["prefill_length"], as_dict=True).items():
            logs = np.log((part[XLSTM] / part[TRANSFORMER]).to_numpy())
            if len(logs) < 2 or prefill == 0:
                continue
            half = float(stdtrit(len(logs) - 1, (1 + level) / 2) * logs.std(ddof=1) / np.sqrt(len(logs)))
            mean = Estimate(
                value=float(np.exp(logs.mean())),
                low=float(np.exp(logs.mean() - half)),
                high=float(np.exp(logs.mean() + half)),
                level=level,
                method=f"Student over {len(logs)} sizes",
            )
            found.append(
                TimeRatio(
                    kind=kind,
                    prefill=int(prefill),
                    sizes=tuple(part["size"].to_list()),
                    ratios=tuple(float(v) for v in np.exp(logs)),
                    mean=mean,
                )
            )
    return tuple(found)
