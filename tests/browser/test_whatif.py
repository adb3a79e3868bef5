"""The what-if panel against the library's numbers, for the same budget, context and serving volume."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from reports import render
from reports.whatif import ACCELERATORS
from sweeps.laws import LAWS, Analysis, Estimate, Flag, LawFit
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.inference_cost import ServingCost, serving_optimum, two_n_per_token
from sweeps.laws.inputs import FlopFunction, prepare
from sweeps.laws.intervals import percentiles
from sweeps.laws.optima import optima
from sweeps.laws.predictions import law_and_params
from sweeps.serving import serving_cost
from tests.browser import sweep
from tests.browser.conftest import Open, Opened

TOLERANCE = 2e-5
"""Relative: float32 draws move N* by less than 1e-5, and percentiles join two of them."""


def rows_of(fit: LawFit) -> np.ndarray:
    _, params = law_and_params(fit)
    return np.vstack([params, fit.draws])


def flops_of(table: pl.DataFrame, arch: str, context: int) -> FlopFunction:
    own = table.filter((pl.col("arch") == arch) & (pl.col("context_length") == context))
    return flops_of_runs(prepare(own))


def group_of(fitted: Analysis, arch: str, context: int) -> LawFit:
    (group,) = [g for g in fitted.groups if (g.arch, g.context_length) == (arch, context)]
    return group.parametric[0]


def agrees(shown: tuple[float, float, float], values: np.ndarray, level: float = 0.95) -> None:
    expected = (values[0], *percentiles(values[1:], level))
    assert shown == pytest.approx(expected, rel=TOLERANCE, nan_ok=True)
    assert math.isfinite(shown[0])


@pytest.mark.parametrize("arch", ["transformer", "mlstm"])
@pytest.mark.parametrize(("context", "budget"), [(128, 1e13), (512, 2.5e11), (512, 3e16)])
def test_optimum_at_a_budget(
    whole: Opened, table: pl.DataFrame, fitted: Analysis, arch: str, context: int, budget: float
):
    whole.typed(budget=f"{budget:g}", context=str(context))
    fit = group_of(fitted, arch, context)
    best = optima(law_and_params(fit)[0], rows_of(fit), [budget], flops=flops_of(table, arch, context))
    shown = whole.answers(arch)
    agrees(shown["N*"], best.N[:, 0])
    agrees(shown["D*"], best.D[:, 0])
    agrees(shown["loss"], best.loss[:, 0])
    assert shown["train"][0] == budget


def served(arch: str, tokens: float, prompt: int, answer: int) -> ServingCost:
    configs = [config for config in sweep.models() if config.arch == arch]
    return serving_cost(configs, tokens, prompt_length=prompt, generated_length=answer)


@pytest.mark.parametrize("arch", ["transformer", "mlstm"])
def test_serving_volume(whole: Opened, table: pl.DataFrame, fitted: Analysis, arch: str):
    whole.typed(budget="1e13", context="512", tokens="3e7", prompt="400", answer="100", price="2")
    fit = group_of(fitted, arch, 512)
    lean = serving_optimum(
        law_and_params(fit)[0],
        rows_of(fit),
        1e13,
        served(arch, 3e7, 400, 100),
        flops=flops_of(table, arch, 512),
    )
    shown = whole.answers(arch)
    for name, values in (
        ("N", lean.N),
        ("D", lean.D),
        ("train", lean.train_flops),
        ("serve", lean.inference_flops),
        ("total", lean.total_flops),
    ):
        agrees(shown[f"serving-{name}"], values)
    assert shown["serving-saving"] == pytest.approx(
        (lean.saving[0], *percentiles(lean.saving[1:], 0.95)), abs=2e-5
    )
    assert lean.saving[0] > 0.01
    assert shown["serving-price"][0] == pytest.approx(2 * shown["serving-hours"][0])


def test_hours_of_a_named_gpu_and_dearer_serving(whole: Opened, table: pl.DataFrame, fitted: Analysis):
    whole.typed(
        device="NVIDIA H100 SXM",
        unit="hours",
        budget="0.00001",
        mfu="50",
        context="128",
        tokens="1e7",
        serving_mfu="10",
    )
    budget = 1e-5 * 3600 * 0.5 * ACCELERATORS["NVIDIA H100 SXM"]
    shown = whole.answers("transformer")
    assert shown["train"][0] == pytest.approx(budget)
    assert shown["hours"][0] == pytest.approx(1e-5)
    fit = group_of(fitted, "transformer", 128)
    cost = served("transformer", 1e7, 64, 64)
    lean = serving_optimum(
        law_and_params(fit)[0],
        rows_of(fit),
        budget,
        lambda N: 5 * cost(N),
        flops=flops_of(table, "transformer", 128),
    )
    agrees(shown["serving-N"], lean.N)
    hours = (lean.train_flops + lean.inference_flops) / (3600 * 0.5 * ACCELERATORS["NVIDIA H100 SXM"])
    agrees(shown["serving-hours"], hours)


def test_the_difference_of_two_architectures(whole: Opened, table: pl.DataFrame, fitted: Analysis):
    whole.typed(budget="1e13", context="128")
    losses = {}
    for arch in ("transformer", "mlstm"):
        fit = group_of(fitted, arch, 128)
        flops = flops_of(table, arch, 128)
        losses[arch] = optima(law_and_params(fit)[0], rows_of(fit), [1e13], flops=flops).loss[:, 0]
    gap = losses["mlstm"] - losses["transformer"]
    low, high = percentiles(gap[1:], 0.95)
    said = whole.page.locator("#what-if .verdict-line").inner_text().replace("\N{MINUS SIGN}", "-")
    assert f"Transformer is {gap[0]:.3f} nats per byte below that of the mLSTM" in said
    assert f"({low:.3f} to {high:.3f})" in said
    assert ("decides nothing" in said) == (low <= 0 <= high)


FORMS = {
    "tied": {"A": 38.0, "B": 60.0, "E": 0.7, "alpha": 0.38},
    "no-E": {"A": 12.0, "B": 14.0, "alpha": 0.2, "beta": 0.18},
    "gamma": {"A": 900.0, "B": 4000.0, "E": 0.7, "alpha": 0.7, "beta": 0.6, "gamma": 0.6},
    "kaplan": {"A": 30.0, "B": 90_000.0, "E": 0.6, "k": 0.5, "gamma": 0.7},
    "over-training": {"alpha'": 40.0, "beta'": 80.0, "E": 0.7, "b": -0.37},
}


@pytest.mark.parametrize("law", FORMS)
def test_every_form_of_law(open_page: Open, table: pl.DataFrame, fitted: Analysis, law: str):
    """The page has one form for all laws; the library has each law's own."""
    assert tuple(FORMS[law]) == LAWS[law].params
    group = next(g for g in fitted.groups if (g.arch, g.context_length) == ("transformer", 128))
    spread = np.random.default_rng(1).uniform(0.98, 1.02, (60, len(FORMS[law])))
    fit = replace(
        group.parametric[0],
        law=law,
        params={name: Estimate(value=value) for name, value in FORMS[law].items()},
        draws=np.array(list(FORMS[law].values())) * spread,
    )
    own = table.filter((pl.col("arch") == "transformer") & (pl.col("context_length") == 128))
    alone = replace(fitted, groups=(replace(group, parametric=(fit,)),), comparisons=(), context_laws=())
    opened = open_page(render(own, alone, sweep.provenance()))
    opened.typed(budget="4e12", context="128", tokens="1e7")
    flops = flops_of(own, "transformer", 128)
    best = optima(LAWS[law], rows_of(fit), [4e12], flops=flops)
    shown = opened.answers("transformer")
    agrees(shown["N*"], best.N[:, 0])
    agrees(shown["loss"], best.loss[:, 0])
    cost = served("transformer", 1e7, 64, 64)
    lean = serving_optimum(LAWS[law], rows_of(fit), 4e12, cost, flops=flops)
    agrees(shown["serving-total"], lean.total_flops)


def test_unknown_shapes_are_served_at_two_n(open_page: Open, table: pl.DataFrame, fitted: Analysis):
    opened = open_page(render(table.drop("d_model"), fitted, sweep.provenance()))
    opened.typed(budget="1e13", context="128", tokens="1e8", prompt="0", answer="64")
    fit = group_of(fitted, "mlstm", 128)
    lean = serving_optimum(
        law_and_params(fit)[0],
        rows_of(fit),
        1e13,
        two_n_per_token(1e8),
        flops=flops_of(table, "mlstm", 128),
    )
    agrees(opened.answers("mlstm")["serving-N"], lean.N)
    assert "2 N FLOPs a token" in opened.page.locator("#what-if").inner_text()


def test_what_the_reader_must_know(whole: Opened):
    whole.typed(budget="1e18", context="4096")
    said = whole.page.locator("#what-if .card[data-arch='mlstm']").inner_text()
    assert "An extrapolation" in said
    assert "No such size was trained" in said
    assert "Trained at context 512" in said


@pytest.mark.parametrize(
    ("name", "text"),
    [("budget", "-3"), ("budget", ""), ("context", "long"), ("mfu", "140"), ("tokens", "1e")],
)
def test_a_field_that_makes_no_sense_is_named(whole: Opened, name: str, text: str):
    whole.typed(device="NVIDIA A100", **{name: text})
    field = whole.page.locator(f"#what-if [name='{name}']")
    assert field.get_attribute("aria-invalid") == "true"
    assert whole.page.locator(f"#{field.get_attribute('id')}-error").inner_text()
    assert whole.page.locator("#what-if .card").count() == 0
    whole.typed(device="NVIDIA A100", **{name: "30"})
    assert whole.page.locator("#what-if .card").count() == 2


def test_a_doubtful_law_says_so(open_page: Open, table: pl.DataFrame, fitted: Analysis):
    flag = Flag(code="unidentified", severity="error", message="alpha may be anything")
    doubted = tuple(
        replace(group, parametric=(replace(group.parametric[0], flags=(flag,)),)) for group in fitted.groups
    )
    opened = open_page(render(table, replace(fitted, groups=doubted), sweep.provenance()))
    assert "Doubtful: alpha may be anything." in opened.page.locator("#what-if .cards").inner_text()


def test_without_resamples_there_are_no_intervals(open_page: Open, table: pl.DataFrame, fitted: Analysis):
    bare = tuple(
        replace(group, parametric=tuple(replace(fit, draws=None) for fit in group.parametric))
        for group in fitted.groups
    )
    opened = open_page(render(table, replace(fitted, groups=bare), sweep.provenance()))
    opened.typed(budget="1e12")
    value, low, _ = opened.answers("mlstm")["N*"]
    assert value > 0
    assert math.isnan(low)
