"""The benchmark of the authors' grid of fits, on a few cells."""

import json
from pathlib import Path

import pytest

from benchmarks import paper_fits


def test_a_few_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if not paper_fits.DATA.exists():
        pytest.skip("the published study is not here")
    out = tmp_path / "result.json"
    paper_fits.main(["--cells", "12", "--workers", "1", "--json", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["fitted"], len(result["cells"])) == (12, 12)
    assert all(row["excess"] <= 1e-8 for row in result["cells"])
    assert {row["arch"] for row in result["cells"]} == {"mlstm"}
    assert "12 cells fitted" in capsys.readouterr().out


def test_hours_of_the_peer_by_hand():
    timed = [{"gamma": False, "cpu_s_per_start": 0.29}, {"gamma": True, "cpu_s_per_start": 0.47}]
    assert paper_fits.peer_core_hours(timed) == pytest.approx(7 * 18 * (2000 * 0.29 + 8000 * 0.47) / 3600)


def test_absent_data_are_named(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"lnd_fits_summary\.csv: no such file"):
        paper_fits.main(["--data", str(tmp_path)])
