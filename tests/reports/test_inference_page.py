"""The page of an inference benchmark: what it says, and that it says it to whoever sends strange names."""

import json
import re

import polars as pl
import pytest

from reports.inference import render, sentences
from reports.inference.tables import rate_text, seconds
from reports.provenance import Provenance
from sweeps.inference.analysis import InferenceAnalysis, analyse
from sweeps.inference.table import complete
from sweeps.inference.total_cost import Load
from tests.sweeps.inference.test_costs import trained
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.timing.points import Point

LOAD = Load(tokens=1e13, prompt_length=8192, generated_length=1024, batch_size=4)


@pytest.fixture(scope="module")
def analysis() -> InferenceAnalysis:
    """The Transformer pays for every token before; the mLSTM does not. One point failed."""
    rows = []
    for d in (128, 256, 512):
        shape = {"d_model": d, "num_blocks": d // 64, "vocab_size": 1000}
        for model in (mlstm_config(num_heads=2, **shape), transformer_config(num_heads=2, **shape)):
            for T in (128, 1024, 8192):
                for B in (1, 4):
                    seen = T if model.arch == "transformer" else 1500
                    row = Point(model=model, prefill_length=T, batch_size=B).describe(f"<{d}>")
                    row |= {"status": "finished", "device": "d", "memory_bytes": 1e9, "decode": "graph"}
                    row["ttft_s"] = 1e-9 * T * B * d * (1 + seen / 1000)
                    row["step_time_s"] = 1e-6 * d + 1e-9 * B * seen * d
                    rows.append(row)
    rows[0] |= {"status": "failed", "error": "crashed: by SIGSEGV", "ttft_s": None, "step_time_s": None}
    both = [trained("mlstm"), trained("transformer")]
    configs = tuple(
        mlstm_config(d_model=d, num_blocks=d // 64, num_heads=2, vocab_size=1000) for d in (128, 256, 512)
    )
    both[0] = type(both[0])(**{**both[0].__dict__, "configs": configs})
    return analyse(
        complete(pl.DataFrame(rows, infer_schema_length=None)),
        resamples=30,
        load=LOAD,
        trained=both,
        losses=[4.2, 4.0],
        notes=["Training costs: laws of sweep quick."],
    )


def provenance() -> Provenance:
    return Provenance(
        sweep="inference-<b>", created_at="2026-01-02", source="measured here", spec_yaml="a: <i>"
    )


def test_the_answer_is_what_the_analysis_found(analysis: InferenceAnalysis) -> None:
    said = sentences(analysis)
    cheaper = min(analysis.cheaper, key=lambda found: found.loss)
    assert cheaper.better == "mlstm"
    assert "mLSTM costs less than the Transformer" in said[0]
    assert "4.000" in said[1]
    assert any(re.search(r"decodes a token sooner than the Transformer from [\d,]+ tokens", s) for s in said)
    assert any("did not see" in sentence for sentence in said)


def test_every_number_of_the_figures_stands_in_the_page(analysis: InferenceAnalysis) -> None:
    page = render(analysis, provenance())
    data = json.loads(re.search(r'id="figure-data">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert {"ttft-0", "step_time-2", "throughput-0", "memory-0", "held-out-0", "costs-0"} <= set(
        data["charts"]
    )
    for table in ("errors", "rates", "crossovers", "costs", "measurements"):
        assert f'id="table-{table}"' in page
    assert page.count("crashed: by SIGSEGV") == 1
    assert render(analysis, provenance()) == page


def test_names_cannot_become_markup(analysis: InferenceAnalysis) -> None:
    page = render(analysis, provenance())
    assert "<b>" not in page.replace("</b>", "")
    assert "&lt;128&gt;" in page
    assert "a: &lt;i&gt;" in page


def test_without_laws_the_page_says_why_and_has_no_costs(analysis: InferenceAnalysis) -> None:
    bare = analyse(analysis.table, resamples=10, notes=["No total cost: no sweep."])
    page = render(bare, provenance())
    assert "No total cost: no sweep." in page
    assert 'id="costs"' not in page
    assert "decodes a token" in sentences(bare)[0]


def test_versions_are_those_of_the_measurement_and_of_the_fit(analysis: InferenceAnalysis) -> None:
    table = analysis.table.with_columns(torch=pl.lit("2.11.0"), step_time_spread=pl.lit(0.0021))
    made = Provenance(sweep="s", created_at="2026-01-02", source="a table", versions={"torch": "2.13.0+cpu"})
    page = render(analyse(table, resamples=10), made)
    found = re.findall(r"<dt>(\w+ with)</dt>\s*<dd[^>]*>([^<]*)</dd>", page)
    assert found == [("Measured with", "torch 2.11.0"), ("Fitted with", "torch 2.13.0+cpu")]
    assert "0.2 %" in page


@pytest.mark.parametrize(
    ("value", "text"), [(60.2e-6, "60.2 µs"), (5.13e-3, "5.13 ms"), (1.2, "1.2 s"), (3e-8, "30 ns")]
)
def test_times_of_any_size(value: float, text: str) -> None:
    assert seconds(value) == text


def test_rates_of_any_unit() -> None:
    assert rate_text(3.24e12, "B/s") == "3.24 TB/s"
    assert rate_text(float("inf"), "FLOP/s") == "takes no time"
    assert rate_text(0.0, "s") == "takes no time"
