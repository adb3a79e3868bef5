"""The benchmark of the report runs and says what it found."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import report


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "results.json"
    monkeypatch.setattr(report, "CONTEXTS", (128,))
    monkeypatch.setattr(sys, "argv", ["report", "--runs", "40", "--resamples", "5", "--json", str(path)])
    report.main()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["runs"], found["same_again"]) == (40, True)
    assert found["fit_s"] > 0
    assert found["render_s"] > 0
    assert "| 40 |" in capsys.readouterr().out
