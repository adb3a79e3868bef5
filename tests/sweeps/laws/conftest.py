"""Published points, read where they lie and never committed; a test that needs an absent file skips."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

HERE = Path(__file__).parent
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No fit may overflow, divide by zero or lose a nan on its way: numpy's warnings are failures here."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("error::RuntimeWarning"))


@pytest.fixture(scope="session")
def published() -> Callable[[str], pl.DataFrame]:
    """A table of published points by file name, with the columns of a run table."""

    def read(name: str) -> pl.DataFrame:
        path = DATA / "laws" / name
        if not path.exists():
            pytest.skip(f"the published points {name} are not here")
        return pl.read_csv(path).rename(
            {"params": "N", "tokens": "D", "budget_flops": "budget"}, strict=False
        )

    return read


@pytest.fixture(scope="session")
def epoch_245(published: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    """Hoffmann et al. 2022, Fig. 4, as read off by Epoch AI; every point is its own budget."""
    return published("chinchilla_epoch_245.csv").drop("budget")


@pytest.fixture(scope="session")
def epoch_240(epoch_245: pl.DataFrame) -> pl.DataFrame:
    """The 240 points that Besiroglu et al. 2024 keep."""
    return epoch_245.filter(pl.col("epoch_keep"))


@pytest.fixture(scope="session")
def llama3_raw(published: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    return published("llama3_isoflop.csv").filter(pl.col("experiment") == "llama_3__raw_loss")


@pytest.fixture(scope="session")
def marin_clean(published: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    return published("marin_dclm_isoflop.csv").filter(~pl.col("outlier"))
