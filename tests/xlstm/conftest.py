"""A corpus of a few kilobytes, and a training on it."""

from pathlib import Path

import pytest

from tests.xlstm.training_jobs import run_spec, tiny_corpus
from xlstm.data import Corpus
from xlstm.training.job import TrainJob


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def job(corpus: Corpus, tracking_uri: str, tmp_path: Path) -> TrainJob:
    return TrainJob(
        spec=run_spec(corpus),
        data_folder=corpus.folder,
        run_dir=tmp_path / "run",
        tracking_uri=tracking_uri,
        experiment="tests",
        artifact_root=(tmp_path / "artifacts").as_uri(),
        run_name="tiny",
        tags={"isoflop.sweep": "s", "isoflop.budget": "1e9"},
        keep_final_checkpoint=True,
    )
