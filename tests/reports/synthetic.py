"""A sweep without noise to speak of: runs on two known surfaces, and the analysis that a fit would return."""

from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl

from reports import Provenance
from sweeps.laws.types import (
    Analysis,
    Comparison,
    Estimate,
    Flag,
    GroupAnalysis,
    LawFit,
    OptimumPrediction,
    Parabola,
    PowerLaw,
)

BUDGETS = (1e11, 3e11, 1e12)
TARGET = 1e13
SIZES = (14_928, 28_536, 43_168, 84_720, 133_440, 234_048)
SURFACES = {
    "transformer": {"E": 0.72, "A": 38.0, "alpha": 0.42, "B": 95.0, "beta": 0.345},
    "mlstm": {"E": 0.70, "A": 36.0, "alpha": 0.42, "B": 108.0, "beta": 0.345},
}
METHOD = "chinchilla, Huber"


def around(value: float, spread: float, decimals: int | None = None) -> Estimate:
    """An interval of `spread` in relative terms."""
    return Estimate(
        value=value, low=value * (1 - spread), high=value * (1 + spread), method="pairs bootstrap"
    )


def surface(arch: str, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    p = SURFACES[arch]
    return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]


def optimum(arch: str, C: float) -> tuple[float, float, float]:
    """N*, D*, L* by the closed form for C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
    p = SURFACES[arch]
    total = p["alpha"] + p["beta"]
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / total)
    N, D = G * (C / 6) ** (p["beta"] / total), (C / 6) ** (p["alpha"] / total) / G
    return N, D, float(surface(arch, np.float64(N), np.float64(D)))


def run_table(contexts: tuple[int, ...] = (128,)) -> pl.DataFrame:
    rng = np.random.default_rng(7)
    return pl.DataFrame([run(rng, *cell) for cell in product(SURFACES, contexts, BUDGETS, SIZES)])


def run(rng: np.random.Generator, arch: str, context: int, budget: float, N: float) -> dict[str, object]:
    steps = round(budget / (6 * N) / (8 * context))
    D = steps * 8.0 * context
    loss = float(surface(arch, np.float64(N), np.float64(D)) + 0.004 * rng.standard_normal())
    return {
        "run_key": f"{arch}{context}{budget:.0e}{N}",
        "run_name": f"{arch}-{N / 1000:.0f}k-{budget:.0e}-T{context}",
        "arch": arch,
        "context_length": context,
        "budget": budget,
        "N": float(N),
        "D": D,
        "train_flops": 6 * N * D,
        "loss": loss,
        "status": "finished",
        "seed": 0,
        "steps": steps,
        "peak_lr": 0.01 * (40_000 / N) ** 0.3,
        "epochs": 0.2,
        "wall_time_s": float(20 + 8e-11 * budget * rng.uniform(0.6, 1.2)),
        "device": "cpu",
        "mlflow_run_id": f"id{arch}{N}{budget:.0e}{context}",
        "mlflow_experiment_id": "1",
    }


def parabola(table: pl.DataFrame, budget: float) -> Parabola:
    part = table.filter(pl.col("budget") == budget)
    x, center = np.log(part["N"].to_numpy()), float(np.log(part["N"].to_numpy()).mean())
    c2, c1, c0 = np.polyfit(x - center, part["loss"].to_numpy(), 2)
    best = -c1 / (2 * c2)
    N = float(np.exp(center + best))
    return Parabola(
        budget=budget,
        train_flops=budget,
        center=center,
        c0=c0,
        c1=c1,
        c2=c2,
        n_points=part.height,
        N_low=float(part["N"].min()),
        N_high=float(part["N"].max()),
        N=around(N, 0.13),
        D=around(budget / 6 / N, 0.13),
        loss=around(float(c0 - c1**2 / (4 * c2)), 0.006),
        rms_residual=0.0041,
        predicted_bias=-0.021,
        usable=True,
    )


def power_law(quantity: str, parabolas: list[Parabola]) -> PowerLaw:
    C = np.log([p.budget for p in parabolas])
    y = np.log([getattr(p, quantity).value for p in parabolas])
    slope, intercept = np.polyfit(C - C.mean(), y, 1)
    return PowerLaw(
        quantity=quantity,  # type: ignore[arg-type]
        exponent=around(float(slope), 0.11),
        intercept=float(intercept),
        C_ref=float(np.exp(C.mean())),
        n_budgets=len(parabolas),
    )


def law_fit(arch: str, table: pl.DataFrame) -> LawFit:
    fitted = surface(arch, table["N"].to_numpy(), table["D"].to_numpy())
    return LawFit(
        law="chinchilla",
        formula="L = E + A N^-alpha + B D^-beta",
        estimator="sum of Huber(1e-3) of ln L residuals",
        params={name: around(value, 0.08) for name, value in SURFACES[arch].items()},
        objective=0.00101827401,
        n_points=table.height,
        diagnostics={
            "quadratic_zone_share": 0.31,
            "agreeing_starts": 33,
            "starts": 36,
            "gradient_norm": 3.1e-12,
            "condition": 3.9e3,
            "r2": 0.9991,
        },
        residuals=np.log(table["loss"].to_numpy()) - np.log(fitted),
    )


def group(arch: str, table: pl.DataFrame, context: int = 128) -> GroupAnalysis:
    part = table.filter((pl.col("arch") == arch) & (pl.col("context_length") == context))
    parabolas = [parabola(part, budget) for budget in BUDGETS]
    return GroupAnalysis(
        arch=arch,
        context_length=context,
        n_runs=part.height,
        parabolas=tuple(parabolas),
        power_laws={q: power_law(q, parabolas) for q in ("N", "D", "loss")},
        parametric=(law_fit(arch, part),),
        optima=tuple(prediction(arch, C) for C in (*BUDGETS, TARGET)),
        diagnostics={
            "holdout": [
                {"held_out": 1e12, "bias": 0.0031, "rms": 0.0042, "baseline_rms": 0.051, "n": 6},
                {"held_out": 3e11, "bias": -0.0009, "rms": 0.0038, "baseline_rms": 0.049, "n": 6},
            ],
            "checklist": {"objective": "sum of Huber(1e-3)", "N counts": "embeddings included", "starts": 36},
            "noise_floor": 0.0041,
        },
    )


def prediction(arch: str, C: float) -> OptimumPrediction:
    N, D, loss = optimum(arch, C)
    spread = 0.12 if BUDGETS[-1] >= C else 0.3
    return OptimumPrediction(
        budget=C,
        N=around(N, spread),
        D=around(D, spread),
        loss=around(loss, 0.004 if BUDGETS[-1] >= C else 0.015),
        method=METHOD,
        extrapolation=C / BUDGETS[-1],
    )


def comparison(C: float, *, decided: bool, context: int = 128) -> Comparison:
    gap = optimum("transformer", C)[2] - optimum("mlstm", C)[2]
    low, high = (1.3 * gap, 0.6 * gap) if decided else (2.1 * gap, -0.4 * gap)
    return Comparison(
        context_length=context,
        budget=C,
        better="transformer",
        other="mlstm",
        loss_difference=Estimate(value=gap, low=low, high=high),
        compute_ratio=Estimate(value=1.31, low=1.18 if decided else 0.91, high=1.46),
        decided=decided,
    )


def analysis(
    table: pl.DataFrame, *, targets: tuple[float, ...] = (), contexts: tuple[int, ...] = (128,)
) -> Analysis:
    groups = [group(arch, table, context) for context in contexts for arch in SURFACES]
    compared = [comparison(C, decided=C >= 3e11, context=c) for c in contexts for C in (*BUDGETS, TARGET)]
    return Analysis(
        groups=tuple(groups),
        comparisons=tuple(compared),
        settings={
            "law": "chinchilla",
            "huber_delta": 1e-3,
            "resamples": 1000,
            "target_budgets": list(targets),
        },
    )


def provenance(**changes: object) -> Provenance:
    made = Provenance(
        sweep="quick",
        created_at="2026-11-24T04:40:12+00:00",
        spec_yaml="name: quick\nbudgets: [1.0e+11, 3.0e+11, 1.0e+12]\narchs: [transformer, mlstm]\n",
        data={
            "name": "python-sources",
            "tokenizer": "bytes",
            "vocab_size": 256,
            "hash": "9f2c6e0b7f7bd1d0",
            "files": 5123,
            "bytes": 81_234_567,
            "train_tokens": 77_172_838,
            "val_tokens": 4_061_729,
            "split": "by file, 95% train",
            "unigram_loss": 3.241,
            "bytes_per_token": 1.0,
        },
        versions={"isoflop": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        git_revision="2075077",
        wall_time_s=462.0,
        device="CPU, 2 threads",
        mlflow_url="http://127.0.0.1:5000",
        regenerate="isoflop report quick",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def with_flags(result: Analysis) -> Analysis:
    """The same analysis with trouble in every place that can carry a flag."""
    first, *rest = result.groups
    edge = Flag(
        code="vertex-outside-grid",
        severity="warning",
        message="the optimum at 1.0e11 FLOPs lies below the smallest size (14.9 k): add smaller sizes",
    )
    inverted = Flag(
        code="inverted-parabola",
        severity="error",
        message="the parabola at 3.0e11 FLOPs opens downwards, so it has no optimum: add sizes on both sides",
    )
    few = Flag(
        code="few-budgets", severity="warning", message="3 budgets carry the power law: exponents are rough"
    )
    info = Flag(
        code="quadratic-zone", severity="info", message="31% of the residuals lie in the quadratic zone"
    )
    marked = (
        replace(first.parabolas[0], flags=(edge,), usable=False),
        replace(first.parabolas[1], flags=(inverted,)),
        first.parabolas[2],
    )
    laws = {**first.power_laws, "N": replace(first.power_laws["N"], flags=(few,))}
    changed = replace(first, parabolas=marked, power_laws=laws, flags=(few, info))
    return replace(result, groups=(changed, *rest))
