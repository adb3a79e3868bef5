"""A tiny sweep on a little real text."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import yaml

MODULES = (
    "argparse",
    "ast",
    "configparser",
    "csv",
    "datetime",
    "difflib",
    "doctest",
    "inspect",
    "json/decoder",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec of two budgets, three sizes and both architectures, a second of training each."""
    folder = tmp_path_factory.mktemp("tiny")
    library = Path(sysconfig.get_path("stdlib"))
    (folder / "text").mkdir()
    for name in MODULES:
        shutil.copy(library / f"{name}.py", folder / "text" / f"{Path(name).name}.txt")
    fields = {
        "name": "tiny",
        "archs": ["mlstm", "transformer"],
        "context_lengths": [32],
        "budgets": [1e8, 2e8],
        "ladder": {
            "shapes": [{"d_model": d, "num_blocks": 1, "num_heads": 1} for d in (8, 12, 16)],
            "ffn_multiple_of": 8,
        },
        "learning_rate": {"base": 0.01, "reference_width": 16},
        "batch": {"tokens": 64},
        "data": {
            "source": "files",
            "name": "tiny",
            "paths": [str(folder / "text")],
            "validation_fraction": 0.2,
        },
        "validation": {"tokens": 1024, "times": 2},
        "resources": {"device": "cpu", "runs_in_parallel": 2, "timeout_s": 120},
        "laws": {"resamples": 20},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path
