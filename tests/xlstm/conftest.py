"""A corpus of a few kilobytes, and a training on it."""

from pathlib import Path

import pytest

from tests.xlstm.training_jobs import run_spec
from xlstm.data import Corpus, CorpusSpec, prepare_corpus
from xlstm.training.job import TrainJob


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    (root / "text").mkdir()
    for i in range(20):
        (root / "text" / f"f{i}.txt").write_text(f"def f{i}(x):\n    return x * {i} + {i * i}\n" * 3)
    spec = CorpusSpec(name="tiny", source="files", paths=(str(root / "text"),), validation_fraction=0.25)
    return prepare_corpus(spec, root / "tiny-bytes")


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
