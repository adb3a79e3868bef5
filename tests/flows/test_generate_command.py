"""`isoflop generate` and `isoflop export` as their user types them."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from tasks.generating import Request, Writer
from tasks.state import State, open_state
from tests.flows.test_cli import Isoflop, home, isoflop
from tests.xlstm.test_checkpoints import spec_of
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.checkpoints import load_checkpoint, save_checkpoint
from xlstm.config import ModelConfig
from xlstm.data import CorpusSpec, prepare_corpus
from xlstm.data.tokenizers import BytesTokenizer, train_bpe
from xlstm.generation import generate
from xlstm.models import build_model
from xlstm.run_spec import RunSpec
from xlstm.training.saved import save_model

__all__ = ["home", "isoflop"]  # fixtures

SHAPE = {"d_model": 16, "num_blocks": 1, "num_heads": 2, "ffn_multiple_of": 8}
MLSTM = mlstm_config(**SHAPE, vocab_size=256)
TRANSFORMER = transformer_config(**SHAPE, vocab_size=256)


def trained(state: State, config: ModelConfig, run_name: str = "a-run", **data: str) -> RunSpec:
    """A run that is finished, as far as generation sees it: its model and its line in a plan."""
    torch.manual_seed(0)
    model = build_model(config)
    torch.nn.init.normal_(model.lm_head.weight)
    spec = spec_of(config)
    spec = replace(spec, data=replace(spec.data, **data))
    save_model(model.state_dict(), spec, state.run_dir(spec.run_key))
    sweep = state.sweep_dir(run_name)
    sweep.mkdir()
    pl.DataFrame({"run_key": [spec.run_key], "run_name": [run_name]}).write_parquet(sweep / "plan.parquet")
    return spec


@pytest.mark.parametrize("config", [MLSTM, TRANSFORMER], ids=lambda config: config.arch)
def test_a_run_by_any_of_its_names(isoflop: Isoflop, home: Path, config: ModelConfig) -> None:
    state = open_state(home)
    spec = trained(state, config)
    model = load_checkpoint(state.run_dir(spec.run_key)).model
    prompt = "def f(x):"
    text = generate(model, [list(prompt.encode())], 10)[0].tokens
    expected = prompt + BytesTokenizer().decode(text) + "\n"
    for name in ("a-run", spec.run_key, spec.run_key[:8], state.run_dir(spec.run_key)):
        answer = isoflop("generate", name, "--prompt", prompt, "--tokens", 10, "--temperature", 0)
        assert answer == (0, expected, ""), name


def test_several_prompts_at_once_and_seeds(isoflop: Isoflop, home: Path) -> None:
    trained(open_state(home), MLSTM)
    command = ("generate", "a-run", "--prompt", "one", "--prompt", "a longer two", "--tokens", 20)
    first, again, other = (isoflop(*command, "--seed", seed, "--top-p", 0.9)[1] for seed in (1, 1, 2))
    assert first == again != other
    assert first.startswith("one")
    assert "\n\na longer two" in first


def test_a_prompt_from_standard_input(isoflop: Isoflop, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(open_state(home), MLSTM)
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    piped = isoflop("generate", "a-run", "--tokens", 12, "--temperature", 0)
    assert piped == isoflop(
        "generate", "a-run", "--prompt", "from a pipe", "--tokens", 12, "--temperature", 0
    )


def test_in_turns_the_model_remembers(home: Path) -> None:
    """What it answers to the second line depends on the first line and on its own answer."""
    trained(open_state(home), TRANSFORMER)
    request = Request(tokens=9, temperature=0, stop_at_end=False)
    writer = Writer("a-run", open_state(home), request)
    talk = writer.talk()
    tokens: list[int] = []
    for line in ("hello", "and then"):
        tokens += line.encode()
        text = generate(writer.model, [tokens], 9)[0].tokens
        assert "".join(talk.answer(line)) == BytesTokenizer().decode(text)
        tokens += text


def test_a_transformer_says_where_its_training_ended(isoflop: Isoflop, home: Path) -> None:
    trained(open_state(home), TRANSFORMER)
    code, _, said = isoflop("generate", "a-run", "--prompt", "abc", "--tokens", 30)
    assert code == 0
    assert said == "note: trained on 32 tokens of context, asked for 33: expect nothing of what lies beyond\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("nothing",),
            "nothing: is no folder, and no run in {home}/runs: give a path, a run's name or its key",
        ),
        (("a-run", "--tokens", 0), "--tokens 0: must be at least 1"),
        (("a-run", "--temperature", -1), "temperature = -1.0: must be 0 or more, and finite"),
        (("a-run", "--top-p", 1.5), "top_p = 1.5: must be above 0 and at most 1"),
        (("a-run", "--top-k", 0), "top_k = 0: must be at least 1"),
        (("a-run", "--device", "tpu"), "--device tpu: write cpu, cuda or cuda:1"),
        (("a-run", "--device", "cuda:99"), "--device cuda:99: this machine has"),
        (("a-run", "--dtype", "int4"), "--dtype int4: must be one of float32, bfloat16"),
        (("a-run", "--tokenizer", "no.json"), "no.json: not a tokenizers file"),
    ],
)
def test_mistakes_are_one_line(
    isoflop: Isoflop, home: Path, arguments: tuple[object, ...], message: str
) -> None:
    trained(open_state(home), MLSTM)
    code, out, error = isoflop("generate", *arguments, "--prompt", "x")
    assert (code, out) == (2, "")
    assert error.startswith("isoflop: " + message.format(home=home))
    assert error.count("\n") == 1


def test_models_that_cannot_be_opened(isoflop: Isoflop, home: Path, tmp_path: Path) -> None:
    state = open_state(home)
    spec = trained(state, MLSTM)
    weights = state.run_dir(spec.run_key) / "model" / "data" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, error = isoflop("generate", "a-run", "--prompt", "x")
    assert code == 2
    assert f"{weights}: is cut off, or holds more than tensors" in error
    assert error.count("\n") == 1
    weights.unlink()
    (state.run_dir(spec.run_key) / "spec.json").write_text("{}")
    assert "this run kept no model" in isoflop("generate", "a-run", "--prompt", "x")[2]
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type = 'gpt2': xlstm and llama can be read" in isoflop("export", tmp_path / "gpt", "x")[2]


def test_a_prompt_beyond_memory(isoflop: Isoflop, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(open_state(home), MLSTM)
    monkeypatch.setattr("xlstm.generation.memory.available_bytes", lambda device: 10_000)
    code, _, error = isoflop("generate", "a-run", "--prompt", "x" * 500)
    assert code == 2
    assert error.startswith("isoflop: 1 x 700 tokens need about ")
    assert "free: shorten the prompt" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "layout"),
    [(MLSTM, "hf"), (MLSTM, "xlstm_large"), (TRANSFORMER, "hf")],
    ids=lambda value: getattr(value, "arch", value),
)
def test_what_is_exported_writes_the_same(
    isoflop: Isoflop, home: Path, tmp_path: Path, config: ModelConfig, layout: str
) -> None:
    spec = trained(open_state(home), config)
    target = tmp_path / "published"
    code, out, error = isoflop("export", "a-run", target, "--format", layout)
    assert (code, out, error) == (0, f"{target}\n", "")
    assert spec.run_key in (target / "README.md").read_text()
    options = ("--prompt", "import os", "--tokens", 12, "--temperature", 0)
    assert isoflop("generate", target, *options) == isoflop("generate", "a-run", *options)
    if layout == "hf":
        assert json.loads((target / "config.json").read_text())["eos_token_id"] == 0
    assert "is there already" in isoflop("export", "a-run", target)[2]


def test_the_tokenizer_of_the_corpus(isoflop: Isoflop, home: Path, tmp_path: Path) -> None:
    """A model trained on BPE tokens is read by the tokenizer of the very corpus, and exported with it."""
    state = open_state(home)
    (tmp_path / "text").mkdir()
    for j in range(8):
        (tmp_path / "text" / f"{j}.txt").write_text("the quick brown fox jumps over the lazy dog " * (j + 9))
    spec = CorpusSpec(
        name="fox",
        source="files",
        paths=(str(tmp_path / "text"),),
        validation_fraction=0.3,
        tokenizer="bpe:270",
    )
    corpus = prepare_corpus(spec, state.data / spec.folder_name)
    config = mlstm_config(**SHAPE, vocab_size=corpus.meta.vocab_size)
    trained(state, config, tokenizer="bpe:270", content_hash=corpus.meta.content_hash)
    options = ("--prompt", "the quick", "--tokens", 8, "--temperature", 0)
    code, text, _ = isoflop("generate", "a-run", *options)
    assert code == 0
    assert isoflop("export", "a-run", tmp_path / "out")[0] == 0
    assert " tokens of `fox` (tokenizer" in (tmp_path / "out" / "README.md").read_text()
    assert isoflop("generate", tmp_path / "out", *options)[1] == text
    for path in corpus.folder.iterdir():
        path.unlink()
    assert (
        "nothing here says how it reads text: give --tokenizer" in isoflop("generate", "a-run", *options)[2]
    )


def test_a_tokenizer_of_another_model(isoflop: Isoflop, home: Path, tmp_path: Path) -> None:
    trained(open_state(home), MLSTM)
    (tmp_path / "t.json").write_text(train_bpe(["the quick brown fox " * 50], 264).to_json())
    error = isoflop("generate", "a-run", "--prompt", "x", "--tokenizer", tmp_path / "t.json")[2]
    assert "the tokenizer has 264 tokens and the model 256: it was trained with another one" in error


def test_a_name_of_two_runs(isoflop: Isoflop, home: Path) -> None:
    state = open_state(home)
    for config in (MLSTM, TRANSFORMER):
        spec = trained(state, config, run_name=f"sweep-{config.arch}")
        plan = pl.DataFrame({"run_key": [spec.run_key], "run_name": ["twice"]})
        plan.write_parquet(state.sweep_dir(f"sweep-{config.arch}") / "plan.parquet")
    assert "twice: names 2 runs: say which by its key" in isoflop("generate", "twice", "--prompt", "x")[2]


def test_a_folder_without_a_tokenizer(isoflop: Isoflop, home: Path, tmp_path: Path) -> None:
    save_checkpoint(build_model(MLSTM), tmp_path / "bare", "xlstm_large")
    assert "give --tokenizer" in isoflop("generate", tmp_path / "bare", "--prompt", "x")[2]
    assert isoflop("generate", tmp_path / "bare", "--prompt", "x", "--tokenizer", "bytes")[0] == 0
    code, out, _ = isoflop("export", tmp_path / "bare", tmp_path / "hf")
    assert (code, out.splitlines()[0]) == (
        0,
        "no tokenizer is known: give --tokenizer to have one beside the weights",
    )
