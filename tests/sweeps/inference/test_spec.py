"""Specs of inference benchmarks, their points and keys, and tables from elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.inference.grid import plan_points, planned_table, too_large
from sweeps.inference.spec import PROFILES, load_benchmark
from sweeps.inference.table import complete, read_measurements
from sweeps.laws import FitError
from sweeps.spec import SpecError
from xlstm.accounting import count_parameters, mlstm_config, parameters_by_part, transformer_config
from xlstm.timing.points import Measurement, Point


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_shipped_profiles_are_valid_and_named_by_their_file(profile: str) -> None:
    spec = load_benchmark(profile)
    assert spec.name == profile
    points = plan_points(spec, "cpu", "a machine")
    lengths, batches = len(spec.prefill_lengths), len(spec.batch_sizes)
    assert len(points) == len(spec.archs) * len(spec.sizes) * lengths * batches
    assert len({point.key for point in points}) == len(points)


def test_the_gpu_profile_has_the_shapes_of_the_paper() -> None:
    table = planned_table(plan_points(load_benchmark("gpu"), "cuda", "a machine"))
    sizes = {(arch, N) for arch, N in table.select("arch", "N").unique().iter_rows()}
    assert sizes == {  # arXiv:2510.02228: the numbers that its runs logged
        ("transformer", 162_220_800.0),
        ("transformer", 406_635_520.0),
        ("transformer", 1_420_396_544.0),
        ("mlstm", 164_110_224.0),
        ("mlstm", 406_856_896.0),
        ("mlstm", 1_420_839_104.0),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batchsizes": [1]}, "batchsizes: unknown key; did you mean batch_sizes"),
        ({"batch_sizes": [0]}, "batch_sizes.0 = 0"),
        ({"batch_sizes": [4, 4]}, "4 stands there twice"),
        ({"prefill_lengths": []}, "prefill_lengths is empty"),
        ({"holdout": 1.0}, "holdout = 1.0"),
        ({"serving.tokens": -1}, "serving.tokens = -1"),
        (
            {"sizes": [{"name": "a", "d_model": 6, "num_blocks": 1, "num_heads": 4}]},
            "no multiple of 2 num_heads",
        ),
        (
            {"sizes": [{"name": "a", "d_model": 8, "num_blocks": 1, "num_heads": {"mlstm": 1}}]},
            "a has no num_heads for transformer",
        ),
        (
            {"sizes": [{"name": "a", "archs": ["mlstm"], "d_model": 8, "num_blocks": 1, "num_heads": 1}]},
            "none for",
        ),
    ],
)
def test_a_fault_is_one_line_that_names_the_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_benchmark("quick", changes)
    assert said in str(raised.value)
    assert "quick.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(SpecError, match="gpu, paper, quick"):
        load_benchmark("fast")


POINT = Point(
    model=mlstm_config(d_model=64, num_blocks=2, num_heads=2, vocab_size=100), prefill_length=7, batch_size=2
)


@settings(derandomize=True, max_examples=60)
@given(
    prefill=st.integers(1, 10**6),
    batch=st.integers(1, 4096),
    seed=st.integers(0, 9),
    machine=st.text(min_size=1, max_size=8),
)
def test_a_key_changes_with_everything_that_a_measurement_depends_on(
    prefill: int, batch: int, seed: int, machine: str
) -> None:
    point = replace(POINT, prefill_length=prefill, batch_size=batch, seed=seed)
    assert Point.from_json(point.to_json()) == point
    assert Point.from_json(point.to_json()).key(machine) == point.key(machine)
    for other in (replace(point, prefill_length=prefill + 1), replace(point, state_dtype="bf16")):
        assert other.key(machine) != point.key(machine)
    assert point.key(machine + "x") != point.key(machine)


def test_a_point_below_one_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="batch_size = 0"):
        replace(POINT, batch_size=0)


def test_a_measurement_survives_json() -> None:
    found = Measurement(
        ttft_s=(1.0, 2.0), step_time_s=(0.5,), memory_bytes=7, decode="eager", device="d", versions={"a": "1"}
    )
    assert Measurement.from_json(found.to_json()) == found


def test_memory_and_bytes_of_a_step_by_hand() -> None:
    transformer = transformer_config(d_model=64, num_blocks=2, num_heads=2, vocab_size=100)
    point = Point(model=transformer, prefill_length=90, batch_size=3, generated=10, dtype="bf16")
    cache = 3 * 2 * 100 * 2 * 64 * 2  # sequences, blocks, tokens, keys and values, width, bytes
    assert point.memory_bytes == 2 * count_parameters(transformer) + cache
    read = 2 * (count_parameters(transformer) - parameters_by_part(transformer).embedding)
    assert point.step_bytes == read + 3 * 2 * 95 * 2 * 64 * 2
    state = 2 * 2 * 2 * (16 * 32 + 16 + 1) * 4  # sequences, blocks, heads, C and n and m, bytes
    assert POINT.step_bytes == 2 * (count_parameters(POINT.model) - 6400) + 2 * state


def test_what_cannot_fit_is_said_and_not_tried() -> None:
    assert too_large(POINT, 1e9) is None
    said = too_large(replace(POINT, batch_size=10**6), 1e9)
    assert said is not None
    assert "state need" in said
    assert "not tried" in said


def test_a_table_from_elsewhere_is_read_or_refused_by_name(tmp_path: Path) -> None:
    row = POINT.describe("small") | {"ttft_s": 0.1, "step_time_s": 0.01}
    rows = [row | {"engine": "ours"}, row | {"engine": "transformers", "step_time_s": 0.1}]
    (tmp_path / "a.json").write_text(json.dumps({"measurements": rows}))
    table = read_measurements(tmp_path / "a.json")
    assert table["step_time_s"].to_list() == [0.01]
    assert table["status"].to_list() == ["finished"]
    table.write_parquet(tmp_path / "a.parquet")
    assert read_measurements(tmp_path / "a.parquet").equals(table)
    table.write_csv(tmp_path / "a.csv")
    assert read_measurements(tmp_path / "a.csv")["step_time_s"].to_list() == [0.01]
    complete(table).drop("ttft_s").write_parquet(tmp_path / "b.parquet")
    with pytest.raises(FitError, match=r"b\.parquet: has no column ttft_s"):
        read_measurements(tmp_path / "b.parquet")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(FitError, match=r"c\.json: cannot be read"):
        read_measurements(tmp_path / "c.json")
    with pytest.raises(FitError, match="neither"):
        read_measurements(tmp_path / "d.txt")
    assert isinstance(table, pl.DataFrame)
