"""Checkpoints by themselves: round trips of every layout, and what is said of files that are not right."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlstm.accounting import build_config
from xlstm.checkpoints import CheckpointError, fuse, load_checkpoint, loadable, save_checkpoint, split_fused
from xlstm.checkpoints.xlstm_names import ffn_rule, round_up, write_config
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.models import LanguageModel, build_model
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
from xlstm.training.saved import load_model, save_model

MLSTM = MLSTMConfig(
    vocab_size=50, d_model=32, num_blocks=2, num_heads=2, ffn_dim=80, head_dim_qk=8, chunk_size=8
)
TRANSFORMER = TransformerConfig(vocab_size=50, d_model=32, num_blocks=2, num_heads=2, ffn_dim=80)
LAYOUTS: dict[str, tuple[ModelConfig, str, dict[str, Any]]] = {
    "hf xlstm": (MLSTM, "hf", {}),
    "hf xlstm fused": (MLSTM, "hf", {"weight_mode": "fused"}),
    "hf xlstm shards": (MLSTM, "hf", {"shard_bytes": 20_000}),
    "hf llama": (TRANSFORMER, "hf", {"context_length": 4096}),
    "xlstm_large": (MLSTM, "xlstm_large", {}),
    "xlstm_large shards": (MLSTM, "xlstm_large", {"shard_bytes": 20_000}),
}
XLSTM, LLAMA = "hf xlstm", "hf llama"


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    return model.to(dtype)


def saved(tmp_path: Path, layout: str = XLSTM, dtype: torch.dtype = torch.float32) -> Path:
    config, name, options = LAYOUTS[layout]
    save_checkpoint(model_of(config, dtype), tmp_path / "checkpoint", name, **options)
    return tmp_path / "checkpoint"


def spec_of(config: ModelConfig) -> RunSpec:
    return RunSpec(
        model=config,
        data=DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64),
        optimizer=OptimizerSpec(peak_lr=1e-3, warmup_steps=1, cooldown_steps=1),
        context_length=32, batch_size=2, steps=4, validation_tokens=64, validation_every=2, seed=0,
    )  # fmt: skip


def edit_json(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (fields | changes).items() if v != "absent"}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_layout_comes_back_bit_by_bit(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saved(tmp_path, layout, dtype)
    assert loadable(folder)
    loaded = load_checkpoint(folder)
    source = model_of(LAYOUTS[layout][0], dtype)
    assert loaded.model.config == source.config
    assert loaded.context_length == LAYOUTS[layout][2].get("context_length")
    for name, weight in source.state_dict().items():
        found = loaded.model.state_dict()[name]
        assert found.dtype == dtype
        assert torch.equal(found, weight), name


def test_a_chosen_dtype(tmp_path: Path) -> None:
    model = load_checkpoint(saved(tmp_path), torch.bfloat16).model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("config", [MLSTM, TRANSFORMER, build_config("xlstm[1:1]", vocab_size=50, d_model=16, num_blocks=2, num_heads=2)], ids=lambda c: c.arch)  # fmt: skip  # noqa: E501
def test_what_a_training_leaves(config: ModelConfig, tmp_path: Path) -> None:
    source = model_of(config)
    folder = save_model(source.state_dict(), spec_of(config), tmp_path)
    for place in (tmp_path, folder, folder / "data"):
        loaded = load_checkpoint(place)
        assert (loaded.layout, loaded.spec, loaded.context_length) == ("isoflop", spec_of(config), 32)
        assert torch.equal(loaded.model.lm_head.weight, source.lm_head.weight)
    assert torch.equal(load_model(folder).lm_head.weight, source.lm_head.weight)


def test_single_to_fused_and_back() -> None:
    weights = model_of(MLSTM).state_dict()
    fused = fuse(weights, MLSTM)
    assert fused["backbone.blocks.1.mlstm_layer.qkv_opreact.weight"].shape == (2 * 16 + 2 * 32, 32)
    assert fused["backbone.blocks.0.mlstm_layer.ifgate_preact.bias"].shape == (4,)
    assert fused["backbone.blocks.0.ffn.proj_up_gate_z.weight"].shape == (160, 32)
    assert len(fused) == len(weights) - 2 * 6
    back = split_fused(fused, MLSTM)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 600), st.integers(1, 20_000), st.integers(1, 8))
def test_their_rounding_gives_back_every_width(half: int, ffn_dim: int, heads: int) -> None:
    """Whatever the feed-forward and query widths, the official rules lead from our factors to them."""
    d = heads * half
    config = replace(MLSTM, d_model=d, num_heads=heads, ffn_dim=ffn_dim, head_dim_qk=max(1, half // 3))
    factor, multiple = ffn_rule(config)
    assert round_up(d * factor, multiple) == ffn_dim
    assert int(d * write_config(config)["qk_dim_factor"]) == heads * config.head_dim_qk


def test_the_usual_factor_where_it_fits() -> None:
    """2048 of 768 by the official code, 2112 by the Scaling-Laws runs: both have a factor."""
    assert ffn_rule(replace(MLSTM, d_model=768, ffn_dim=2048)) == (2.667, 64)
    factor, multiple = ffn_rule(replace(MLSTM, d_model=768, ffn_dim=2112))
    assert (round_up(768 * factor, multiple), multiple) == (2112, 64)
    assert ffn_rule(replace(MLSTM, d_model=4096, ffn_dim=10944)) == (2.667, 64)


def test_the_weights_say_the_feed_forward_width(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit_json(folder / "config.json", ffn_proj_factor=9.0)
    assert load_checkpoint(folder).model.config == MLSTM


REFUSED_CONFIGS = [
    (XLSTM, {"model_type": "gpt2"}, r"model_type = 'gpt2': xlstm and llama can be read"),
    (XLSTM, {"model_type": "absent"}, r"model_type = None: xlstm and llama"),
    (XLSTM, {"use_bias": True}, "use_bias = True: this model has False"),
    (XLSTM, {"v_dim_factor": 2.0}, r"v_dim_factor = 2\.0: this model has 1\.0"),
    (XLSTM, {"eps": 1e-3}, r"eps = 0\.001: this model has 1e-06"),
    (XLSTM, {"num_heads": 3}, "queries of 16 channels: must be a multiple of num_heads = 3"),
    (XLSTM, {"num_heads": 0}, "num_heads = 0: must be a whole number from 1"),
    (XLSTM, {"num_heads": "two"}, "num_heads = 'two': a number is due"),
    (XLSTM, {"num_heads": float("inf")}, "num_heads = inf: a number is due"),
    (XLSTM, {"qk_dim_factor": float("nan")}, "qk_dim_factor = nan: a number is due"),
    (XLSTM, {"gate_soft_cap": None}, "gate_soft_cap = None: this model has a soft cap"),
    (XLSTM, {"output_logit_soft_cap": None}, "output_logit_soft_cap = None: this model has a soft cap"),
    (XLSTM, {"output_logit_soft_cap": 0}, r"output_logit_soft_cap = 0\.0: must be above 0"),
    (XLSTM, {"vocab_size": "absent"}, "has no vocab_size"),
    (XLSTM, {"vocab_size": 51}, r"embedding\.weight has shape \(50, 32\): the configuration says \(51, 32\)"),
    (XLSTM, {"num_blocks": 3}, r"has no backbone\.blocks\.2\..* and 14 others, which mlstm needs"),
    (XLSTM, {"num_blocks": 1}, r"has backbone\.blocks\.1\..* and 14 others, for which mlstm has no place"),
    (LLAMA, {"model_type": "xlstm", "num_heads": 2, "embedding_dim": 32}, "has no matrix backbone.blocks.0"),
    (LLAMA, {"attention_bias": True}, "attention_bias = True: this model has False"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act = 'gelu': this model has 'silu'"),
    (LLAMA, {"head_dim": 24}, "head_dim = 24: this model has 16"),
    (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide num_attention_heads = 2"),
    (LLAMA, {"num_key_value_heads": 1}, r"attention\.k\.weight has 32 rows: 16 are due"),
    (LLAMA, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "positions of type 'yarn'"),
    (LLAMA, {"rope_parameters": 7}, "rope_parameters = 7: an object is due"),
    (LLAMA, {"num_attention_heads": 32}, "must be a multiple of 2"),
]


@pytest.mark.parametrize(("layout", "changes", "message"), REFUSED_CONFIGS)
def test_configurations_that_are_refused(
    layout: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, layout)
    if "num_attention_heads" in changes:
        changes = changes | {"head_dim": "absent", "num_key_value_heads": "absent"}
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_checkpoint(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value) or "rows" in message


GATE = "backbone.blocks.0.mlstm_layer.igate_preact.weight"
REFUSED_WEIGHTS: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda w: w.pop(GATE), f"has no {GATE}, which mlstm needs"),
    (lambda w: w.update(bonus=torch.ones(2)), "has bonus, for which mlstm has no place"),
    (
        lambda w: w.update({GATE: w[GATE][:, :9].clone()}),
        r"has shape \(2, 9\): the configuration says \(2, 32\)",
    ),
    (lambda w: w.update({GATE: w[GATE].to(torch.int8)}), r"is torch\.int8: weights are float32, bfloat16"),
    (lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:49].clone()}), r"lm_head\.weight has shape"),
    (lambda w: w.clear(), "has no matrix"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_WEIGHTS)
def test_weights_that_are_refused(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path)
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_checkpoint(folder)
    assert "\n" not in str(refusal.value)


def test_a_fused_matrix_of_another_height(tmp_path: Path) -> None:
    folder = saved(tmp_path, "hf xlstm fused")
    name = "backbone.blocks.1.mlstm_layer.qkv_opreact.weight"
    edit_weights(folder, lambda w: w.update({name: w[name][:-1].clone()}))
    with pytest.raises(CheckpointError, match="has 95 rows: 96 are due"):
        load_checkpoint(folder)
    edit_weights(folder, lambda w: w.update({name: torch.tensor(1.0)}))
    with pytest.raises(CheckpointError, match="has 0 rows: 96 are due"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_files_that_are_cut_off(kept: int, tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: is cut off, or no safetensors file"
    ) as said:
        load_checkpoint(path.parent)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kept", [0, 30, 2000, -30])
def test_our_files_that_are_cut_off(kept: int, tmp_path: Path) -> None:
    folder = save_model(model_of(MLSTM).state_dict(), spec_of(MLSTM), tmp_path)
    path = folder / "data" / "model.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.pt: is cut off, or holds more than tensors") as said:
        load_checkpoint(folder)
    assert "\n" not in str(said.value)
    with pytest.raises(CheckpointError):
        load_model(folder)


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle ran')",)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    folder = save_model(model_of(MLSTM).state_dict(), spec_of(MLSTM), tmp_path / "ours")
    torch.save({"weights": Bomb()}, folder / "data" / "model.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_checkpoint(folder)
    official = saved(tmp_path)
    (official / "model.safetensors").unlink()
    torch.save(Bomb(), official / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is a pickle, which could run anything"):
        load_checkpoint(official)


def test_our_spec_of_another_version(tmp_path: Path) -> None:
    folder = save_model(model_of(MLSTM).state_dict(), spec_of(MLSTM), tmp_path)
    edit_json(folder / "data" / "spec.json", seed="absent")
    with pytest.raises(CheckpointError, match=r"spec\.json: is no run of this version"):
        load_checkpoint(folder)


def test_our_weights_of_another_architecture(tmp_path: Path) -> None:
    folder = save_model(model_of(TRANSFORMER).state_dict(), spec_of(MLSTM), tmp_path)
    message = (
        r"has no backbone\..* others, which mlstm needs; it has .*attention.*, of another architecture\?"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_indexes_that_are_wrong(tmp_path: Path) -> None:
    folder = saved(tmp_path, "hf xlstm shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))

    def refused(weight_map: Any, message: str) -> None:
        path.write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder)

    refused({}, "has no weight_map")
    refused(index["weight_map"] | {first: "../secret"}, "names '../secret', which is no file beside it")
    refused(index["weight_map"] | {first: 7}, "names 7, which is no file beside it")
    refused(index["weight_map"] | {first: ["a"]}, r"names \['a'\], which is no file beside it")
    refused(index["weight_map"] | {first: "model-9.safetensors"}, r"model-9\.safetensors: is not there")
    refused(index["weight_map"] | {"ghost": index["weight_map"][first]}, "has no ghost, which model")


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder: give a run, or a folder with a model"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no model: config\.json, config\.yaml or"):
        load_checkpoint(tmp_path)
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(CheckpointError, match="this run kept no model"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: holds list, an object is due"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is no JSON"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match=r"config\.yaml: is no YAML"):
        load_checkpoint(tmp_path)


def test_config_yaml_runs_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path, "xlstm_large")
    assert yaml.safe_load((folder / "config.yaml").read_text())["weight_mode"] == "single"
    (folder / "config.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(CheckpointError, match="is no YAML"):
        load_checkpoint(folder)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    mlstm, transformer = model_of(MLSTM), model_of(TRANSFORMER)
    lstm = build_model(build_config("lstm", vocab_size=50, d_model=16, num_blocks=1, num_heads=1))
    for model, layout, options, message in (
        (lstm, "hf", {}, "architecture lstm: has no layout hf"),
        (transformer, "xlstm_large", {}, "architecture transformer: has no layout xlstm_large"),
        (mlstm, "gguf", {}, "format 'gguf': must be one of hf, xlstm_large"),
        (mlstm, "hf", {"weight_mode": "split"}, "weight mode 'split'"),
        (transformer, "hf", {"weight_mode": "fused"}, "only Hugging Face's xLSTM has it"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(model, tmp_path / "new", layout, **options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        save_checkpoint(mlstm, tmp_path / "full", "hf")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    save_checkpoint(mlstm, tmp_path / "deep" / "er", "hf", separator=7, extra_files={"note.txt": "hello"})
    assert json.loads((tmp_path / "deep/er/config.json").read_text())["eos_token_id"] == 7
    assert (tmp_path / "deep/er/note.txt").read_text() == "hello"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "deep/er").iterdir()} == {0o644}
