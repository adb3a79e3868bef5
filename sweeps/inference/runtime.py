"""The runtime model: what a prefill and a decode step take, as sums of work over rates, on one device.

The model of *xLSTM Scaling Laws* (arXiv:2510.02228), TTFT = FLOPs / rate + overhead and step time = bytes /
bandwidth + overhead, fits one model size at a time. Here each kind of work has a rate of its own and one fit
holds for all sizes of an architecture, so that it also predicts a size that was not measured:

    TTFT      = maps / rate + mixing / rate + bytes / bandwidth + blocks * launch + constant
    step time = weights / bandwidth + state / bandwidth + FLOPs / rate + scores / rate + keys * latency
                + blocks * launch + blocks of a batch * launch + constant

Scores and keys are the Transformer's: narrow heads reach less bandwidth, and a cache that few heads walk
through is read at the pace of the walk. A step of few sequences is a chain of maps, that of a batch has other
kernels, and more of them (`xlstm.chain`): a block's overhead differs. No term can be negative (theirs can,
and overheads are). Relative errors are minimised: least squares with non-negative coefficients, which has one
minimum and needs no start, under Huber's weights against outliers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from scipy.optimize import nnls

from sweeps.inference.table import bytes_per_element, config_of, finished
from sweeps.laws import Estimate, FitError
from xlstm.accounting import (
    BytesPerElement,
    decode_bytes,
    decode_flops,
    prefill_bytes,
    prefill_flops,
    state_bytes,
)
from xlstm.accounting.inference import block_flops
from xlstm.chain import most_chained
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig

Kind = Literal["ttft", "step_time"]
KINDS: tuple[Kind, ...] = ("ttft", "step_time")
COLUMN: dict[Kind, str] = {"ttft": "ttft_s", "step_time": "step_time_s"}
TERMS: dict[Kind, tuple[str, ...]] = {
    "ttft": ("maps", "mixing", "bytes", "blocks", "constant"),
    "step_time": ("weights", "state", "flops", "scores", "keys", "blocks", "batched", "constant"),
}
UNITS = {
    "maps": "FLOP/s",
    "mixing": "FLOP/s",
    "flops": "FLOP/s",
    "bytes": "B/s",
    "weights": "B/s",
    "state": "B/s",
    "scores": "1/s",
    "keys": "s",
    "blocks": "s",
    "batched": "s",
    "constant": "s",
}
"""Of what a coefficient is reported as: a rate (the inverse of the coefficient), or seconds."""
OUTLIER = 0.1
"""Relative error from which a row counts linearly."""
_ROUNDS = 4
_RANK = 1e-7
"""Singular values below this share of the largest are none."""


def work(
    kind: Kind, config: ModelConfig, prefill_length: int, batch_size: int, stored: BytesPerElement
) -> np.ndarray:
    """The terms of a point, in the order of `TERMS[kind]`: FLOPs, bytes, numbers of blocks, 1."""
    assert isinstance(config, MLSTMConfig | TransformerConfig)
    T, B = prefill_length, batch_size
    if kind == "ttft":
        total = prefill_flops(config, T, batch_size=B)
        maps = B * (T * config.num_blocks * block_flops(config) + 2 * config.d_model * config.vocab_size)
        moved = prefill_bytes(config, T, batch_size=B, bytes_per=stored)
        return np.array([maps, total - maps, moved, config.num_blocks, 1.0])
    step = decode_bytes(config, T, batch_size=B, bytes_per=stored)
    weights = 2 * step - decode_bytes(config, T, batch_size=2 * B, bytes_per=stored)
    flops = decode_flops(config, T, batch_size=B)
    state = state_bytes(config, T, batch_size=B, bytes_per=stored)
    blocks = config.num_blocks
    overheads = [blocks, blocks if batch_size > most_chained(config.d_model) else 0.0, 1.0]
    if isinstance(config, MLSTMConfig):  # read and written
        return np.array([weights, 2 * state, flops, 0.0, 0.0, *overheads])
    keys = blocks * T
    return np.array([weights, state, flops, B * config.num_heads * keys, keys, *overheads])


def works(kind: Kind, table: pl.DataFrame) -> np.ndarray:
    """`work` of every row: (rows, terms). A step is counted in the middle of the tokens generated."""
    found = []
    for row in table.iter_rows(named=True):
        seen = int(row["prefill_length"]) + (0 if kind == "ttft" else int(row["generated"] or 0) // 2)
        found.append(work(kind, config_of(row), seen, int(row["batch_size"]), bytes_per_element(row)))
    return np.array(found).reshape(len(found), len(TERMS[kind]))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Points that the fit did not see, predicted."""

    observed: np.ndarray
    predicted: np.ndarray
    rows: pl.DataFrame = field(repr=False)

    @property
    def median_error(self) -> float:
        """Median of |predicted / observed - 1|."""
        return float(np.median(np.abs(self.predicted / self.observed - 1)))


@dataclass(frozen=True, kw_only=True)
class RuntimeModel:
    """One architecture's TTFT or step time on one device."""

    arch: str
    kind: Kind
    device: str
    coefficients: np.ndarray
    """(terms,), seconds a unit of work."""
    draws: np.ndarray = field(repr=False)
    """(resamples, terms): the same of each bootstrap resample of the points."""
    present: np.ndarray
    """(terms,), true where some point has such work."""
    confounded: tuple[str, ...]
    """Terms that these points cannot tell apart, as with two sizes the weights, the blocks and the constant:
    their sum is known and their rates are not."""
    n_points: int
    median_error: float
    """Of the points fitted."""
    largest_error: float
    level: float
    held_out: HeldOut | None = None
    """Each point from a fit that did not see it; the coefficients here are of all."""

    def seconds(
        self,
        config: ModelConfig,
        prefill_length: int,
        batch_size: int,
        stored: BytesPerElement,
    ) -> float:
        """Predicted time."""
        return float(work(self.kind, config, prefill_length, batch_size, stored) @ self.coefficients)

    def predict(self, work: np.ndarray) -> np.ndarray:
        """Times of works (points, terms)."""
        return work @ self.coefficients

    def predict_draws(self, work: np.ndarray) -> np.ndarray:
        """Times of works (points, terms) under every resample: (points, resamples)."""
        return work @ self.draws.T

    def rates(self) -> dict[str, Estimate]:
        """By term: FLOP/s or B/s, infinite where the term takes no time, or seconds; with intervals.

        A term that no point has, as a score of an mLSTM, is left out.
        """
        names = TERMS[self.kind]
        return {name: self._rate(j, name) for j, name in enumerate(names) if self.present[j]}

    def shares(self, work: np.ndarray) -> np.ndarray:
        """Part of the predicted time that each term takes: (points, terms)."""
        parts = work * self.coefficients
        return parts / parts.sum(axis=1, keepdims=True)

    def _rate(self, j: int, name: str) -> Estimate:
        ends = np.quantile(self.draws[:, j], [(1 - self.level) / 2, (1 + self.level) / 2])
        value, low, high = float(self.coefficients[j]), float(ends[0]), float(ends[1])
        if UNITS[name] != "s":
            value, low, high = (1 / v if v > 0 else float("inf") for v in (value, high, low))
        method = f"bootstrap of the points, {len(self.draws)} resamples"
        return Estimate(value=value, low=low, high=high, level=self.level, method=method)


def fit_runtime(
    table: pl.DataFrame,
    arch: str,
    kind: Kind,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    holdout: float = 0.0,
    seed: int = 0,
) -> RuntimeModel:
    """Fit the finished rows of one architecture; `holdout` is the share of them to predict unseen at a time.

    FitError where the rows do not cover the terms, or come from several devices.
    """
    rows = measured(table, arch, kind)
    if not rows.height:
        raise FitError(f"{arch}: no finished point has a {COLUMN[kind]}")
    devices = rows["device"].unique().to_list()
    if len(devices) > 1:
        raise FitError(f"{arch}: measured on {' and '.join(map(str, sorted(devices)))}: fit one at a time")
    X, t = works(kind, rows), rows[COLUMN[kind]].to_numpy()
    needed = _terms(X)
    if len(t) < needed:
        raise FitError(f"{arch}: {len(t)} finished points; the model of {kind} needs {needed}")
    coefficients = solve(X, t)
    error = np.abs(X @ coefficients / t - 1)
    return RuntimeModel(
        arch=arch,
        kind=kind,
        device=str(devices[0]),
        coefficients=coefficients,
        draws=_resampled(X, t, resamples, np.random.default_rng(seed)),
        present=np.any(X != 0, axis=0),
        confounded=_confounded(kind, X, t),
        n_points=len(t),
        median_error=float(np.median(error)),
        largest_error=float(error.max()),
        level=level,
        held_out=_hold_out(rows, X, t, holdout, seed) if holdout else None,
    )


def measured(table: pl.DataFrame, arch: str, kind: Kind) -> pl.DataFrame:
    """The rows of an architecture that have this time."""
    there = pl.col(COLUMN[kind]).is_finite() & (pl.col(COLUMN[kind]) > 0)
    return finished(table).filter((pl.col("arch") == arch) & there.fill_null(False))


def solve(X: np.ndarray, t: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Coefficients (terms,), none below zero, of least Huber loss of the relative errors X c / t - 1."""
    scale = np.abs(X / t[:, None]).max(axis=0)
    scale[scale == 0] = 1.0
    A, counts = X / t[:, None] / scale, np.ones(len(t)) if weights is None else weights
    downweighted = np.ones(len(t))
    c = np.zeros(X.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(counts * downweighted)
        c, _ = nnls(A * root[:, None], root)
        error = np.abs(A @ c - 1)
        downweighted = np.minimum(1.0, OUTLIER / np.maximum(error, 1e-12))
        if np.all(downweighted == 1.0):
            break
    return c / scale


def _terms(X: np.ndarray) -> int:
    """How many columns some point has work in: an mLSTM has no scores and no keys."""
    return int(np.any(X != 0, axis=0).sum())


def _confounded(kind: Kind, X: np.ndarray, t: np.ndarray) -> tuple[str, ...]:
    """Terms with a part in a combination of columns that is zero at every point."""
    A = X / t[:, None]
    size = np.linalg.norm(A, axis=0)
    used = np.flatnonzero(size)
    _, values, rows = np.linalg.svd(A[:, used] / size[used], full_matrices=True)
    missing = rows[int(np.sum(values > _RANK * values[0])) :]
    return tuple(
        TERMS[kind][j] for j, part in zip(used, missing.T, strict=True) if np.any(np.abs(part) > 1e-3)
    )


def _resampled(X: np.ndarray, t: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Coefficients of `resamples` bootstrap samples of the rows: (resamples, terms)."""
    n = len(t)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    found = [solve(X[c > 0], t[c > 0], c[c > 0].astype(float)) for c in counts]
    return np.array(found).reshape(resamples, X.shape[1])


def _hold_out(rows: pl.DataFrame, X: np.ndarray, t: np.ndarray, share: float, seed: int) -> HeldOut:
    """Parts of that share of the points, each predicted by a fit to the others: every point once."""
    n = len(t)
    kept_out = max(1, round(share * n))
    terms = _terms(X)
    if n - kept_out < terms:
        raise FitError(f"a holdout of {share:g} leaves {n - kept_out} of {n} points to fit {terms} terms")
    order, predicted = np.random.default_rng(seed).permutation(n), np.empty(n)
    for start in range(0, n, kept_out):
        test = np.isin(np.arange(n), order[start : start + kept_out])
        predicted[test] = X[test] @ solve(X[~test], t[~test])
    return HeldOut(observed=t, predicted=predicted, rows=rows)


Models = Mapping[tuple[str, Kind], RuntimeModel]


def fit_all(
    table: pl.DataFrame, archs: Sequence[str], **settings: Any
) -> tuple[dict[tuple[str, Kind], RuntimeModel], list[str]]:
    """Models by architecture and kind, and why any is missing."""
    models: dict[tuple[str, Kind], RuntimeModel] = {}
    refused = []
    for arch in archs:
        for kind in KINDS:
            try:
                models[arch, kind] = fit_runtime(table, arch, kind, **settings)
            except FitError as error:
                refused.append(str(error))
    return models, refused
