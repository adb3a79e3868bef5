"""The benchmark of the law fits: its own objective, its isolation of contenders, and what its tables say."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import laws
from benchmarks.laws_contenders import (
    CONTENDERS,
    Task,
    _with_gradient,
    huber_sum,
    polished,
    sampled_excess,
)
from benchmarks.laws_report import markdown

TRUTH = np.array([np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28])


@pytest.fixture
def task() -> Task:
    rng = np.random.default_rng(0)
    N, D = np.geomspace(1e7, 1e10, 40), np.exp(rng.uniform(21, 26, 40))
    loss = (1.69 + 406.4 / N**0.34 + 410.7 / D**0.28) * np.exp(rng.normal(0, 0.004, 40))
    return Task(N=N, D=D, loss=loss, full=False, resamples=2)


@pytest.fixture
def points(task: Task, tmp_path: Path) -> Path:
    """A file like the published one, its last row not kept."""
    path = tmp_path / "points.csv"
    rows = [f"a,b,1e20,{n},{d},{x},True" for n, d, x in zip(task.N, task.D, task.loss, strict=True)]
    head = "source,experiment,budget_flops,params,tokens,loss,epoch_keep"
    path.write_text("\n".join([head, *rows, "a,b,1e20,1e8,1e9,9.0,False"]))
    return path


def test_the_objective_is_hubers_sum_as_printed(task: Task) -> None:
    a, b, e, alpha, beta = TRUTH
    predicted = np.exp(e) + np.exp(a) / task.N**alpha + np.exp(b) / task.D**beta
    r = np.abs(np.log(predicted / task.loss))
    expected = np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum()
    assert huber_sum(TRUTH, task) == pytest.approx(expected, rel=1e-12)


def test_its_gradient_is_that_of_finite_differences(task: Task) -> None:
    weights = np.random.default_rng(1).integers(0, 3, 40).astype(float)
    gradient = _with_gradient(TRUTH, task, weights, 1e3)[1]
    for j, step in enumerate(1e-6 * np.eye(5)):
        rise = huber_sum(TRUTH + step, task, weights) - huber_sum(TRUTH - step, task, weights)
        assert gradient[j] == pytest.approx(1e3 * rise / 2e-6, rel=1e-4, abs=1e-6)


def test_the_check_sees_a_resample_that_stopped_early(task: Task) -> None:
    ends = np.array([TRUTH, TRUTH])
    excess = sampled_excess(task, ends, 1)
    assert min(excess) > 1e-3
    assert polished(task, task.weights[0], [TRUTH]) < huber_sum(TRUTH, task, task.weights[0])


def test_only_the_kept_points_are_read(points: Path, task: Task) -> None:
    found = laws.read_points(points)
    np.testing.assert_allclose(found.loss, task.loss)
    with pytest.raises(SystemExit, match="no such file"):
        laws.read_points(points.with_name("absent.csv"))


def test_ours_in_its_own_process_and_a_peer_that_crashes(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(laws, "CHECK_EVERY", 40)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'Segmentation fault' >&2\nexit 139\n")
    broken.chmod(0o755)
    path = tmp_path / "out" / "result.json"
    only = [
        "--only",
        "ours",
        "vpnls-grid",
        "--repeats",
        "2",
        "--resamples",
        "60",
        "--peer-python",
        str(broken),
    ]
    laws.main(["--points", str(points), "--json", str(path), *only])
    ours, peer = json.loads(path.read_text())["rows"]
    assert peer["error"] == "exit code 139: Segmentation fault"
    assert max(ours["sampled_excess"]) <= 1e-6
    assert ours["restarted_excess"] <= 1e-6
    assert len(ours["walls"]) == 2
    text = capsys.readouterr().out
    assert "| vpnls, grid .01, Huber |  |  |  |  |  | exit code 139: Segmentation fault |" in text
    assert "excess over the minimum polished by scipy, 2 resamples" in text


def test_an_error_inside_a_contender_is_its_row(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(task: Task) -> dict[str, object]:
        raise ModuleNotFoundError("No module named 'vpnls'")

    monkeypatch.setitem(CONTENDERS, "vpnls-grid", ("vpnls", fails))
    monkeypatch.setattr(laws, "pin_to_one_core", lambda: None)
    assert laws.measure("vpnls-grid", task) == {"error": "ModuleNotFoundError: No module named 'vpnls'"}


def test_extrapolations_are_marked() -> None:
    def seconds(value: float, factor: float) -> dict[str, float]:
        return {"wall": value, "cpu": value, "factor": factor}

    params = [400.0, 2000.0, 1.8, 0.35, 0.37]
    common = {"params": params, "objective": 1.0, "starts": 4500, "starts_done": 450}
    ours = {"contender": "ours", "fit": seconds(0.1, 1), "bootstrap": seconds(0.9, 1), "starts": 48}
    ours |= {"params": params, "objective": 1.0, "sampled_excess": [1e-9], "restarted_excess": 2e-6}
    rows = [
        ours | {"converged": 1.0},
        common | {"contender": "textbook", "fit": seconds(80, 10), "bootstrap": seconds(60, 20)}
        | {"resamples_done": 200, "successes": 450, "within_1e-6": 30},
        common | {"contender": "chinchilla", "fit": seconds(50, 12)},
    ]  # fmt: skip
    load = {"first": 0.1, "highest": 0.2, "cores": 2}
    about = {"date": "d", "python": "3", "versions": {"numpy": "2"}, "processor": "p", "command": "c"}
    text = markdown({**about, "load": load, "n_points": 240, "resamples": 4000, "rows": rows})
    assert "140x by wall (~140 s), 140x by CPU seconds | yes |" in text
    assert "2.0e-06; 100.00% with a scaled gradient below 1e-7 | **no** |" in text
    assert "4,500 starts, 450 of them run; 450 say success, 30 within 1e-6 of the best" in text
    assert "| ~200,050 | ~200,050 | 200,050.0x |  | it has no bootstrap: its fit, looped |" in text
    assert "from 200 warm-started resamples" in text
