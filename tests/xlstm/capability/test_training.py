"""Training on answers alone, measuring by level and position, and going on from a checkpoint."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.accounting import build_config
from xlstm.capability.domains import domain_of, open_domains, prepare_domains
from xlstm.capability.material import MixedText, open_material, position_bands
from xlstm.capability.measure import measure
from xlstm.capability.parity import Parity
from xlstm.capability.recall import AssociativeRecall
from xlstm.capability.run import MEASURES
from xlstm.capability.task import IGNORED, Task
from xlstm.capability.text import DomainText
from xlstm.capability.training import Training
from xlstm.data import CorpusError
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
from xlstm.training.job import RunResult, TrainJob
from xlstm.training.run import train

CPU = torch.device("cpu")
PARITY = Parity(trained=8, measured=(8, 16), examples=64)


def spec_of(
    task: Task | DomainText, *, steps: int = 6, batch_size: int = 4, arch: str = "lstm", **changed
) -> RunSpec:
    length = task.length(task.trained) if isinstance(task, Task) else 16
    rate = changed.pop("peak_lr", 0.01)
    fields = {
        "model": build_config(
            arch, vocab_size=task.vocab_size, d_model=16, num_blocks=1, num_heads=1, ffn_multiple_of=8
        ),
        "data": DataSpec(name="made", tokenizer="symbols", content_hash="0" * 64),
        "optimizer": OptimizerSpec(peak_lr=rate, warmup_steps=1, cooldown_steps=1, weight_decay=0.0),
        "context_length": length,
        "batch_size": batch_size,
        "steps": steps,
        "validation_tokens": 64,
        "validation_every": steps,
        "seed": 0,
        "task": task,
    }
    return RunSpec(**(fields | changed))  # type: ignore[arg-type]


class Oracle(nn.Module):
    """Answers parity by its rule, with a little doubt."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 4.0 * F.one_hot(tokens.cumsum(1) % 2, 2).double()


class Constant(nn.Module):
    """Always 1."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(*tokens.shape, 2)


def test_the_loss_is_of_the_answers_alone() -> None:
    """Against cross-entropy by hand, over positions that are asked."""
    task = AssociativeRecall(trained=3, measured=(3,), keys=4, values=4)
    training = Training(spec_of(task), open_material(spec_of(task), Path()), CPU)
    inputs, targets = task.training(0, 0, 4)
    with torch.no_grad():
        log_p = training.model(torch.from_numpy(inputs)).log_softmax(-1).numpy()
    rows, places = np.nonzero(targets != IGNORED)
    by_hand = -log_p[rows, places, targets[rows, places]].mean()
    assert training.advance().item() == pytest.approx(by_hand, rel=1e-5)


def test_micro_batches_change_nothing_but_the_order_of_sums() -> None:
    task = AssociativeRecall(
        trained=3, measured=(3,), keys=4, values=4
    )  # answers are not even over sequences
    spec = spec_of(task)
    whole, parts = (Training(spec, open_material(spec, Path()), CPU, micro_batch=size) for size in (None, 1))
    losses = [[training.advance().item() for _ in range(4)] for training in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_state_goes_on_as_if_nothing_had_happened() -> None:
    spec = spec_of(PARITY, steps=8)
    straight, first, second = (Training(spec, open_material(spec, Path()), CPU) for _ in range(3))
    expected = [straight.advance().item() for _ in range(8)]
    begun = [first.advance().item() for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert begun + [second.advance().item() for _ in range(5)] == expected
    assert second.is_over
    other = Training(replace(spec, seed=1), open_material(spec, Path()), CPU)
    with pytest.raises(ValueError, match="checkpoint of run"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize("arch", ["lstm", "transformer", "xlstm[1:0]", "xlstm[0:1]"])
def test_every_architecture_trains_and_is_measured(arch: str) -> None:
    spec = spec_of(PARITY, arch=arch, steps=2)
    training = Training(spec, open_material(spec, Path()), CPU)
    losses = [training.advance().item() for _ in range(2)]
    assert all(0.3 < loss < 1.5 for loss in losses)
    found = measure(training.model, training.material, CPU)
    assert set(found) == {
        "loss",
        "accuracy",
        *(f"{m}/{n}" for m in ("accuracy", "answer_loss") for n in (8, 16)),
    }


def test_measuring_knows_right_from_wrong() -> None:
    material = open_material(spec_of(PARITY), Path())
    solved = measure(Oracle(), material, CPU)
    assert solved["accuracy/8"] == solved["accuracy/16"] == 1.0
    assert solved["answer_loss/16"] == pytest.approx(math.log1p(math.exp(-4.0)), rel=1e-5)
    guessed = measure(Constant(), material, CPU)
    assert guessed["accuracy/16"] == pytest.approx(0.5, abs=0.08)
    assert guessed["answer_loss/16"] == pytest.approx(
        np.mean([math.log1p(math.exp(1.0)), math.log1p(math.exp(-1.0))]), abs=0.06
    )


def test_an_lstm_learns_short_parity() -> None:
    """The suite's cheapest sign of life: a state is tracked after some seconds."""
    spec = spec_of(Parity(trained=4, measured=(4,), examples=64), steps=150, batch_size=16, peak_lr=0.05)
    training = Training(spec, open_material(spec, Path()), CPU)
    while not training.is_over:
        training.advance()
    assert measure(training.model, training.material, CPU)["accuracy/4"] > 0.95


def test_bands_end_at_the_trained_length_and_its_doubles() -> None:
    bands = position_bands(64, 512)
    assert {32, 64, 128, 256, 512} <= set(bands)
    assert list(bands) == sorted(set(bands))
    assert bands[0] == 1
    assert bands[-1] == 512


# Text.


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("domains")


@pytest.fixture(scope="module")
def text(home: Path) -> DomainText:
    domains = prepare_domains(home, ("python", "headers"), 1_500_000, 160)
    return DomainText(domains=domains, max_bytes=1_500_000, measured_length=64, windows=3, domain_tokens=160)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("a/b.py", "python"),
        ("torch/x.pyi", "stubs"),
        ("include/Python.h", "headers"),
        ("README.md", "documentation"),
        ("docs/index.rst", "documentation"),
        ("numpy-2.0.dist-info/METADATA", "documentation"),
        ("LICENSE", "licences"),
        ("licenses/LICENSE.txt", "licences"),
        ("LICENSE.md", "licences"),
        ("COPYING", "licences"),
        ("license.py", "python"),
        ("licences/data.json", "json"),
        ("METADATA", None),
        ("logo.png", None),
        ("notes.txt", None),
    ],
)
def test_files_belong_to_domains_by_their_names(name: str, domain: str | None) -> None:
    assert domain_of(Path(name)) == domain


def test_domains_are_prepared_once_and_known_by_content(home: Path, text: DomainText) -> None:
    again = prepare_domains(home, ("python", "headers"), 1_500_000, 160)
    assert again == text.domains
    assert len({domain.content_hash for domain in again}) == 2
    for corpus in open_domains(home, text):
        assert corpus.meta.train.bytes + corpus.meta.validation.bytes <= 1_500_000
        corpus.verify()
    changed = replace(text.domains[0], content_hash="0" * 64)
    with pytest.raises(CorpusError, match="holds other text"):
        open_domains(home, replace(text, domains=(changed, text.domains[1])))
    with pytest.raises(CorpusError, match="domain 'poems': not known"):
        prepare_domains(home, ("python", "poems"), 1_500_000, 160)
    with pytest.raises(CorpusError, match="fewer than two"):
        prepare_domains(home, ("python", "headers"), 1_500_000, 10_000_000)


def test_every_domain_has_its_turn(home: Path, text: DomainText) -> None:
    """Batches hold windows of the train tokens of each domain, in equal numbers."""
    spec = spec_of(text, batch_size=6)
    material = open_material(spec, home)
    assert isinstance(material, MixedText)
    inputs, targets = material.batch(3)
    assert inputs.shape == targets.shape == (6, 16)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    for row, (tokens, _) in enumerate(zip(inputs, targets, strict=True)):
        corpus = material.corpora[(3 * 6 + row) % 2]
        assert bytes(tokens.astype(np.uint8)) in bytes(corpus.train) * 2


def test_perplexity_by_domain_and_position(home: Path, text: DomainText) -> None:
    """A model whose loss is known at every position: uniform before position 32, and sure of the wrong one
    after."""

    class ByPosition(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            logits = torch.zeros(*tokens.shape, 256, dtype=torch.float64)
            logits[:, 32:, 1] = 5.0  # a byte that text does not contain
            return logits

    found = measure(ByPosition(), open_material(spec_of(text), home), CPU)
    uniform = math.log(256)
    assert found["domain_loss/python"] == found["domain_loss/headers"] == pytest.approx(uniform)
    assert found["position_loss/32"] == pytest.approx(uniform)
    assert found["position_loss/64"] == pytest.approx(math.log(255 + math.exp(5.0)))
    assert found["loss"] == pytest.approx(uniform)


# In a training process.


def job_of(spec: RunSpec, tmp_path: Path, tracking_uri: str, **changed) -> TrainJob:
    fields = {
        "spec": spec,
        "data_folder": tmp_path / "data",
        "run_dir": tmp_path / "run",
        "tracking_uri": tracking_uri,
        "experiment": "capability",
        "run_name": "parity",
    }
    return TrainJob(**(fields | changed))  # type: ignore[arg-type]


def test_a_run_is_trained_tracked_and_measured(tmp_path: Path, tracking_uri: str) -> None:
    from mlflow.tracking import MlflowClient

    spec = spec_of(PARITY)
    result = train(TrainJob.from_json(job_of(spec, tmp_path, tracking_uri).to_json()))
    assert result.status == "finished"
    kept = json.loads((tmp_path / "run" / MEASURES).read_text())
    run = MlflowClient(tracking_uri).get_run(result.mlflow_run_id or "")
    assert run.info.status == "FINISHED"
    assert {name: run.data.metrics[name] for name in kept} == pytest.approx(kept)
    assert result.loss == kept["loss"]
    assert RunResult.from_json((tmp_path / "run" / "result.json").read_text()) == result


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, tracking_uri: str) -> None:
    spec = spec_of(PARITY, steps=12)
    straight = train(job_of(spec, tmp_path, tracking_uri, run_dir=tmp_path / "straight"))
    paused = job_of(spec, tmp_path, tracking_uri, checkpoint_every_s=0.0, pause_at=0.0)
    with pytest.raises(BaseException, match="paused at step 1 of 12"):
        train(paused)
    resumed = train(job_of(spec, tmp_path, tracking_uri, checkpoint_every_s=0.0))
    assert (resumed.loss, resumed.train_loss) == (straight.loss, straight.train_loss)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_diverges_says_so(tmp_path: Path, tracking_uri: str) -> None:
    spec = spec_of(PARITY, steps=40)
    spec = replace(spec, optimizer=replace(spec.optimizer, peak_lr=1e30, grad_clip=1e30))
    with pytest.raises(ArithmeticError, match="diverged"):
        train(job_of(spec, tmp_path, tracking_uri))
    failed = RunResult.from_json((tmp_path / "run" / "result.json").read_text())
    assert failed.failure == "diverged"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("arch", ["lstm", "transformer", "xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]"])
def test_recorded_steps_are_the_steps(arch: str) -> None:
    spec = spec_of(
        PARITY,
        arch=arch,
        steps=8,
        model=build_config(arch, vocab_size=2, d_model=64, num_blocks=2, num_heads=2, ffn_multiple_of=64),
    )
    device = torch.device("cuda")
    losses = []
    for record in (False, True):
        training = Training(spec, open_material(spec, Path()), device, record=record)
        losses.append([training.advance().item() for _ in range(8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
