"""Crossings and total costs against closed forms and brute force."""

import numpy as np
import polars as pl
import pytest

from sweeps.inference.analysis import analyse, reached_losses
from sweeps.inference.crossover import LONGEST, find_crossover
from sweeps.inference.runtime import TERMS, Kind, RuntimeModel
from sweeps.inference.table import complete
from sweeps.inference.total_cost import Load, Trained, compare_costs, seconds_per_token, total_cost
from sweeps.laws import find_law
from xlstm.accounting import BytesPerElement, count_parameters, mlstm_config, transformer_config
from xlstm.config import ModelConfig
from xlstm.timing.points import Point

STORED = BytesPerElement()
MLSTM = mlstm_config(d_model=256, num_blocks=4, num_heads=4, vocab_size=1000)
TRANSFORMER = transformer_config(d_model=256, num_blocks=4, num_heads=4, vocab_size=1000)


def made_model(arch: str, kind: Kind, spread: float = 0.0, **coefficients: float) -> RuntimeModel:
    """A model with these coefficients, its draws spread around them."""
    c = np.array([coefficients.get(name, 0.0) for name in TERMS[kind]])
    rng = np.random.default_rng(0)
    draws = c * np.exp(spread * rng.standard_normal((200, 1)))
    return RuntimeModel(
        arch=arch,
        kind=kind,
        device="made up",
        coefficients=c,
        draws=draws,
        present=c > 0,
        confounded=(),
        n_points=10,
        median_error=0.0,
        largest_error=0.0,
        level=0.95,
    )


def step_models(constant: float, spread: float = 0.0) -> dict[tuple[str, Kind], RuntimeModel]:
    """The mLSTM's step takes `constant`; the Transformer's 1 ms and a microsecond for each key and block."""
    return {
        ("mlstm", "step_time"): made_model("mlstm", "step_time", spread, constant=constant),
        ("transformer", "step_time"): made_model("transformer", "step_time", constant=1e-3, keys=1e-6),
    }


def crossing(constant: float, spread: float = 0.0):  # type: ignore[no-untyped-def]
    return find_crossover(
        step_models(constant, spread),
        "step_time",
        (MLSTM, TRANSFORMER),
        STORED,
        size="a",
        batch_size=1,
        measured=(128, 2048),
    )


def test_a_crossing_is_where_the_lines_meet() -> None:
    found = crossing(5e-3)
    assert found.verdict == "crosses"
    assert found.length.value == pytest.approx((5e-3 - 1e-3) / (4 * 1e-6), rel=2e-3)
    assert found.length.low == found.length.high == pytest.approx(found.length.value)
    assert found.within_data


def test_a_crossing_beyond_what_was_measured_says_so_and_its_interval_holds_it() -> None:
    found = crossing(2e-2, spread=0.1)
    assert not found.within_data
    assert found.length.low < found.length.value < found.length.high


def test_points_that_failed_are_not_measured() -> None:
    """A Transformer whose cache does not fit beyond 1,024 tokens: the mLSTM overtakes it beyond those."""
    rows = []
    for config in (MLSTM, TRANSFORMER):
        for T in (128, 256, 512, 1024, 2048, 4096, 8192):
            for B in (1, 8):
                step = 6e-3 if config is MLSTM else 1e-3 + 4e-6 * T
                fits = config is MLSTM or B == 1 or T <= 1024
                rows.append(
                    Point(model=config, prefill_length=T, batch_size=B, generated=1).describe("a")
                    | {"device": "made up", "status": "finished" if fits else "failed"}
                    | ({"ttft_s": 1e-3, "step_time_s": step} if fits else {"error": "out of GPU memory"})
                )
    table = complete(pl.DataFrame(rows, infer_schema_length=None))
    found = analyse(table, resamples=10, holdout=0.0).crossovers
    steps = {c.batch_size: c for c in found if c.kind == "step_time"}
    assert [steps[B].verdict for B in (1, 8)] == ["crosses"] * 2
    assert [1024 < steps[B].length.value < 2048 for B in (1, 8)] == [True] * 2
    assert [steps[B].within_data for B in (1, 8)] == [True, False]


def test_always_and_never() -> None:
    assert crossing(0.5e-3).verdict == "always faster"
    found = crossing(2 * (1e-3 + 4 * 1e-6 * LONGEST))
    assert found.verdict == "never faster"
    assert np.isnan(found.length.value)
    assert found.length.high == np.inf


PARAMS = np.array([400.0, 400.0, 1.7, 0.34, 0.28])
"""A, B, E, alpha, beta of the Chinchilla law (arXiv:2203.15556 has nearly these)."""
CONFIGS: tuple[ModelConfig, ...] = tuple(
    transformer_config(d_model=d, num_blocks=d // 64, num_heads=d // 64, vocab_size=1000)
    for d in (128, 256, 512, 1024)
)
LOAD = Load(tokens=1e10, prompt_length=256, generated_length=128, batch_size=4)


def trained(arch: str = "transformer", ratio: float = 1e6) -> Trained:
    law = find_law("chinchilla")
    order = dict(zip(("A", "B", "E", "alpha", "beta"), PARAMS, strict=True))
    params = np.array([order[name] for name in law.params])
    rng = np.random.default_rng(1)
    return Trained(
        arch=arch,
        context_length=1024,
        law=law,
        params=params,
        draws=params * (1 + 0.002 * rng.standard_normal((50, len(params)))),
        flops=lambda N, D: 6 * N * D,
        largest_ratio=ratio,
        flops_per_s=1e12,
        configs=CONFIGS,
    )


MODELS: dict[tuple[str, Kind], RuntimeModel] = {
    ("transformer", "ttft"): made_model("transformer", "ttft", 0.05, maps=1e-12, constant=1e-4),
    ("transformer", "step_time"): made_model("transformer", "step_time", 0.05, weights=1e-10, constant=1e-4),
}


def test_the_best_model_is_the_one_that_brute_force_finds() -> None:
    loss = 4.0
    found = total_cost(trained(), MODELS, LOAD, STORED, loss)
    law, params = trained().law, trained().params
    # Brute force on a grid of N: D from the law by bisection, serving between the shapes along a line.
    sizes = np.log([count_parameters(config) for config in CONFIGS])
    served = np.log([float(seconds_per_token(MODELS, config, LOAD, STORED)[0]) for config in CONFIGS])
    grid = np.exp(np.linspace(sizes[0], sizes[-1], 400))
    D = np.exp(np.linspace(np.log(1e6), np.log(1e13), 4000))
    best = np.inf
    for N in grid:
        losses = law.predict(params, N=np.full_like(D, N), D=D)
        if losses[-1] > loss:
            continue
        tokens = D[np.argmax(losses <= loss)]
        best = min(best, 6 * N * tokens / 1e12 + LOAD.tokens * np.exp(np.interp(np.log(N), sizes, served)))
    assert found.total_s.value == pytest.approx(best, rel=0.03)
    assert found.total_s.value == pytest.approx(found.train_s.value + found.serve_s.value)
    assert found.total_s.low < found.total_s.value < found.total_s.high
    assert not found.at_ratio_limit


def test_serving_shrinks_the_model_and_the_limit_on_the_ratio_holds() -> None:
    little = total_cost(trained(), MODELS, Load(**{**LOAD.__dict__, "tokens": 1e3}), STORED, 4.0)
    much = total_cost(trained(), MODELS, Load(**{**LOAD.__dict__, "tokens": 1e12}), STORED, 4.0)
    assert much.N.value < little.N.value
    limited = total_cost(trained(ratio=40.0), MODELS, Load(**{**LOAD.__dict__, "tokens": 1e12}), STORED, 4.0)
    assert limited.D.value / limited.N.value <= 40.0 * 1.02
    assert limited.at_ratio_limit


def test_a_loss_below_the_laws_floor_is_out_of_reach() -> None:
    found = total_cost(trained(), MODELS, LOAD, STORED, 1.6)
    assert np.isnan(found.total_s.value)
    assert compare_costs([found, found]) == ()


def test_a_ratio_of_costs_comes_with_its_interval() -> None:
    models = dict(MODELS)
    for kind in ("ttft", "step_time"):
        one = MODELS["transformer", kind]  # type: ignore[index]
        models["mlstm", kind] = RuntimeModel(  # type: ignore[index]
            **{**one.__dict__, "arch": "mlstm", "coefficients": one.coefficients / 2, "draws": one.draws / 2}
        )
    shapes = tuple(
        mlstm_config(d_model=d, num_blocks=d // 64, num_heads=2, vocab_size=1000)
        for d in (128, 256, 512, 1024)
    )
    other = Trained(**{**trained("mlstm").__dict__, "configs": shapes})
    load = Load(**{**LOAD.__dict__, "tokens": 1e13})
    costs = [total_cost(one, models, load, STORED, 4.0) for one in (trained(), other)]
    (found,) = compare_costs(costs)
    assert (found.better, found.other) == ("mlstm", "transformer")
    assert found.decided
    assert 1.5 < found.ratio.value < 2.5


def test_losses_are_those_that_every_architecture_reaches() -> None:
    losses = reached_losses([trained(), trained()], [1e18, 1e20])
    assert len(losses) == 2
    assert losses[0] > losses[1] > PARAMS[2]


def test_an_analysis_without_points_of_one_architecture_says_what_is_missing() -> None:
    rows = [
        Point(model=MLSTM, prefill_length=T, batch_size=B).describe("a")
        | {"status": "finished", "device": "d", "ttft_s": 1e-3 * T * B, "step_time_s": 1e-3 * B}
        for T in (64, 128, 256)
        for B in (1, 2, 4)
    ]
    rows.append(
        Point(model=TRANSFORMER, prefill_length=64, batch_size=1).describe("a") | {"status": "failed"}
    )
    found = analyse(complete(pl.DataFrame(rows, infer_schema_length=None)), resamples=10)
    assert {arch for arch, _ in found.models} == {"mlstm"}
    assert found.crossovers == ()
    assert any("transformer: no finished point" in note for note in found.notes)
