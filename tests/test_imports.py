"""Who imports whom, and who stays light."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_arrows_go_one_way() -> None:
    """In a process of its own: import-linter switches off every logger of the process that runs it."""
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


HEAVY = ("torch", "lightning", "mlflow", "prefect", "transformers")


@pytest.mark.parametrize(
    ("modules", "banned"),
    [
        ("xlstm, xlstm.config, xlstm.run_spec, xlstm.accounting, xlstm.data, xlstm.training.job", HEAVY),
        ("sweeps.plan, sweeps.gather, sweeps.laws", HEAVY),
        ("sweeps.capability.plan, sweeps.capability.claims", (*HEAVY, "polars", "pydantic")),
        ("reports", HEAVY),
        ("flows.cli", HEAVY),
        ("flows.isoflop_sweep, flows.scaling_report", ("torch", "lightning", "mlflow")),
    ],
)
def test_what_plans_and_fits_imports_nothing_that_trains(modules: str, banned: tuple[str, ...]) -> None:
    code = f"import {modules}, sys; print(*[name for name in {banned} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_our_names_do_no_harm_to_the_libraries() -> None:
    """`xlstm` and `kernels` are also names of packages on the index, which libraries look for."""
    import lightning.pytorch
    import mlflow

    import kernels
    import xlstm

    assert lightning.pytorch.Trainer
    assert mlflow.MlflowClient
    assert Path(xlstm.__file__).parents[1] == Path(kernels.__file__).parents[1] == Path(__file__).parents[1]
