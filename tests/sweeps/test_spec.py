"""Specs: what a user can get wrong, and the message each fault must give."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.spec import SpecError
from sweeps.spec_files import PROFILES, json_schema, load_spec, parse_spec

MINIMAL = {
    "name": "tiny",
    "archs": ["mlstm", "transformer"],
    "context_lengths": [32],
    "budgets": [1e9],
    "ladder": {"shapes": [{"d_model": 16, "num_blocks": 1, "num_heads": 2}]},
    "learning_rate": {"base": 0.01},
    "batch": {"tokens": 64},
}


@pytest.mark.parametrize("profile", sorted(p.stem for p in PROFILES.glob("*.yaml")))
def test_shipped_profiles_parse(profile: str) -> None:
    assert load_spec(profile).name == profile


def test_effective_yaml_parses_to_the_same_spec(tmp_path: Path) -> None:
    spec = load_spec("quick")
    path = tmp_path / "again.yaml"
    path.write_text(spec.yaml)
    assert load_spec(path) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": [1e9]}, "spec.yaml: budget: unknown key; did you mean budgets?"),
        ({"budgets": [-1e9]}, "spec.yaml: budgets.0 = -1000000000.0: Input should be greater than 0"),
        ({"budgets": []}, "spec.yaml: budgets = []: List should have at least 1 item"),
        ({"budgets": [1e9, 1e9]}, "1000000000.0 stands there twice; remove one"),
        ({"archs": ["rnn"]}, "spec.yaml: archs.0 = 'rnn': arch 'rnn': is no architecture; there are mlstm"),
        ({"archs": ["slstm", "xlstm[0:3]"]}, "'xlstm[0:3]']: xlstm[0:1] stands there twice; remove one"),
        ({"learning_rate": {"bse": 0.1}}, "spec.yaml: learning_rate.bse: unknown key; did you mean base?"),
        (
            {"learning_rate": {"mlstm": {"base": 0.1}}},
            "learning_rate has no entry for transformer; add one, or one for all",
        ),
        ({"learning_rate": {}}, "give one of base (a power law in width) and by_width (a table)"),
        (
            {"ladder": {"shapes": [{"d_model": 16, "num_blocks": 0}]}},
            "spec.yaml: ladder.shapes.0.num_blocks = 0: Input should be greater than or equal to 1",
        ),
        (
            {"ladder": {"shapes": MINIMAL["ladder"]["shapes"] * 2}},
            "d_model 16 with num_blocks 1 stands there twice; remove one",
        ),
        ({"ladder": {**MINIMAL["ladder"], "sizes_per_budget": 3}}, "needs expected_optimum"),
        ({"data": {"source": "files"}}, "data.paths is empty: name the files or folders of the corpus"),
        ({"data": {"tokenizer": "bpe:7"}}, "256 bytes and a separator need 257 tokens"),
        ({"schedule": {"warmup_fraction": 0.6, "cooldown_fraction": 0.5}}, "the cosine needs steps"),
        (
            {"resources": {"device": "cpu", "execution": {"cuda_graph": True}}},
            "spec.yaml: resources.execution = {'cuda_graph': True}: cuda_graph records steps of a GPU, and"
            " device = cpu has none; leave it out, or set device to cuda",
        ),
        ({"name": "Two Words"}, "spec.yaml: name = 'Two Words'"),
    ],
)
def test_bad_specs_name_the_culprit(change: dict, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_spec({**MINIMAL, **change}, origin="spec.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "cuda_graph"), [("auto", True), ("cuda", True), ("cpu", False), ("cpu", None)]
)
def test_steps_are_recorded_wherever_a_gpu_may_be(device: str, cuda_graph: bool | None) -> None:
    resources = {"device": device, "execution": {"cuda_graph": cuda_graph}}
    assert parse_spec({**MINIMAL, "resources": resources}).resources.execution.cuda_graph is cuda_graph


def test_ones_own_text_is_not_called_python() -> None:
    own = parse_spec({**MINIMAL, "data": {"source": "files", "paths": ["texts/poems"]}})
    assert own.data.corpus_spec().label == "poems"
    assert "name: python" not in own.yaml
    assert parse_spec(MINIMAL).data.corpus_spec().label == "python"


def test_missing_key_is_named() -> None:
    fields = {key: value for key, value in MINIMAL.items() if key != "batch"}
    with pytest.raises(SpecError, match=r"^spec: batch: required and missing$"):
        parse_spec(fields)


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(SpecError, match=r"profile 'fast': not known; use one of fineweb, gpu, "):
        load_spec("fast")


def test_unreadable_and_malformed_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(SpecError, match=r"broken\.yaml: not valid YAML"):
        load_spec(path)
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(SpecError, match=r"broken\.yaml: "):
        load_spec(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(SpecError, match=r"broken\.yaml: holds list, not a mapping of keys"):
        load_spec(path)
    with pytest.raises(SpecError, match=r"absent\.yaml: no such file"):
        load_spec(tmp_path / "absent.yaml")


@given(st.integers(1, 9), st.integers(-3, 24), st.sampled_from(["{}e{}", "{}.0e{}", "{}.e{}", "{}E{}"]))
def test_budgets_in_scientific_notation_are_numbers(mantissa: int, exponent: int, form: str) -> None:
    import yaml

    from sweeps.spec_files import Yaml12Loader

    text = form.format(mantissa, exponent)
    value = yaml.load(f"budget: {text}", Loader=Yaml12Loader)["budget"]
    assert isinstance(value, float)
    assert value == float(text)


def test_json_schema_knows_every_section() -> None:
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    assert {"Ladder", "LearningRate", "Data", "Resources", "Laws"} <= set(schema["$defs"])
