"""The GPU session: what it keeps when a step fails, hangs or is cut, and that it says so without a GPU."""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mlstm_gpu_session as gpu_session
from benchmarks import mlstm_tune as tuning
from benchmarks.mlstm_report import _command
from kernels.mlstm.sequence_check import Trial

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")


@pytest.fixture
def session(tmp_path: Path) -> gpu_session.Session:
    return gpu_session.Session(gpu_session.parse(["--json", str(tmp_path / "s.json")]))


@on_cpu
@pytest.mark.parametrize("module", [gpu_session, tuning])
def test_without_a_gpu_one_line_and_code_2(
    module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main(["--json", str(tmp_path / "s.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "no GPU here" in err
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: dict[str, float] = {}

    def fine(session: gpu_session.Session, timeout_s: float) -> dict[str, Any]:
        shares[str(len(shares))] = timeout_s
        return {"code": 0}

    def broken(session: gpu_session.Session, timeout_s: float) -> dict[str, Any]:
        assert "tests" in json.loads(session.options.json.read_text())["steps"]
        raise OSError("lost")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_session, "about", dict)
    for name, step in (("tests", fine), ("trials", broken), ("benchmark", fine), ("tune", fine)):
        monkeypatch.setattr(gpu_session, name, step)
    path = tmp_path / "out" / "s.json"
    assert gpu_session.main(["--json", str(path), "--time-limit", "100"]) == 1
    steps = json.loads(path.read_text())["steps"]
    assert {name: row["code"] for name, row in steps.items()} == {
        "tests": 0, "trials": 1, "benchmark": 0, "tune": 0,
    }  # fmt: skip
    assert steps["trials"]["problem"] == "OSError: lost"
    assert shares["0"] == pytest.approx(30, abs=1)
    assert shares["2"] == pytest.approx(100, abs=2)


def test_a_process_that_hangs_is_cut_and_its_output_kept(session: gpu_session.Session) -> None:
    begun = time.monotonic()
    row = session.run(["-c", "print('so far', flush=True); import time; time.sleep(60)"], 2.0)
    assert time.monotonic() - begun < 30
    assert row["code"] is None
    assert row["tail"] == "so far\n"


def test_wheels_are_found_by_what_runs_later(session: gpu_session.Session, tmp_path: Path) -> None:
    wheels = tmp_path / "in"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "peer-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a_peer_of_ours.py", "x = 3\n")
    (wheels / "broken-1-py3-none-any.whl").write_text("no archive")
    gpu_session.unpack(session, wheels)
    row = session.run(["-c", "import a_peer_of_ours as p; print(p.x)"], 60.0)
    assert (row["code"], row["tail"]) == (0, "3\n")
    kept = json.loads(session.options.json.read_text())["steps"]["wheels"]
    assert kept["code"] == 1
    assert kept["wheels"]["broken-1-py3-none-any.whl"].startswith("BadZipFile")


def test_outcomes_are_read_as_far_as_they_go() -> None:
    log = """[gw1] [  2%] PASSED tests/kernels/test_a.py::test_x[1]
tests/kernels/test_a.py::test_y
[gw0] [  4%] FAILED tests/kernels/test_a.py::test_y[(16, 16)-torch.bfloat16]
[gw3] [100%] SKIPPED tests/kernels/test_a.py::test_z
"""
    assert gpu_session.outcomes(log) == {
        "outcomes": {"PASSED": 1, "FAILED": 1, "SKIPPED": 1},
        "failed": ["tests/kernels/test_a.py::test_y[(16, 16)-torch.bfloat16]"],
    }


@on_cpu
def test_a_trial_that_dies_is_a_row(session: gpu_session.Session) -> None:
    trial = Trial(config="half-32x32", dtype="bfloat16", width=64, value_width=128)
    answer = gpu_session.tried(trial, session.environment, time.monotonic() + 100)
    assert str(answer).startswith("code 1: ")
    assert gpu_session.tried(trial, session.environment, time.monotonic() - 1) == "not run: time limit"


@on_cpu
def test_blocks_that_cannot_be_tried_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "WALKS", tuning.WALKS[:1])
    path = tmp_path / "out" / "blocks.json"
    tuning.run(["states"], ["4h"], path, 60.0)
    rows = json.loads(path.read_text())
    assert [row["kind"] for row in rows] == ["try", "time"]
    assert rows[0]["problem"] == "ends with code 2: mlstm_tune: no GPU here"
    assert rows[1]["problem"] == "no time or none right"


def test_every_candidate_is_a_configuration() -> None:
    for kernel in tuning.KERNELS:
        names = set()
        for blocks in tuning.candidates(kernel):
            row = json.loads(json.dumps(vars(blocks)))
            config = tuning.with_blocks(kernel, row)
            assert getattr(config, kernel) == blocks
            names.add(config.name)
        assert len(names) == len(list(tuning.candidates(kernel)))


def test_tables_of_blocks() -> None:
    blocks = {"tile": [64, 64], "tokens": 64, "stages": 3}
    rows = [
        {"kind": "try", "kernel": "states", "widths": [64, 128], "blocks": blocks, "error": 2e-3},
        {"kind": "time", "kernel": "states", "shape": "4h", "blocks": blocks, "ms": 0.25},
        {"kind": "time", "kernel": "states", "shape": "8h", "problem": "no time or none right"},
    ]
    text = tuning.markdown(rows)
    assert "| states | 64/128 | 64x64x64, 3 stages | 2.0e-03 |  |  |" in text
    assert "| states | 4h | 64x64x64, 3 stages |  | 0.250 |  |" in text
    assert text.endswith("| states | 8h |  |  |  | no time or none right |")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("python -m benchmarks.mlstm_kernels ", "`python -m benchmarks.mlstm_kernels`"),
        ("python -m x` (two runs, cut) `", "`python -m x` (two runs, cut)"),
    ],
)
def test_a_command_is_one_span_of_code(command: str, text: str) -> None:
    assert _command(command) == text
