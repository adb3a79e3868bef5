"""Specs from YAML files and shipped profiles; every fault is one line that names file, key and value."""

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sweeps.spec import SpecError, SweepSpec

PROFILES = Path(__file__).parent / "profiles"
Spec = TypeVar("Spec", bound=BaseModel)


class Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2 floats: 6e18 is a number and not a string."""


Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?(?:[eE][-+]?\d+)$|^[-+]?(?:\d[\d_]*)?\.\d[\d_]*(?:[eE][-+]?\d+)?$"
    ),
    list("-+0123456789."),
)


def load_spec(source: str | Path) -> SweepSpec:
    """Read a spec from a YAML file or, by bare name, from the profiles shipped with the package.

    Raises SpecError, one line that names file, key and value.
    """
    path = find_spec(source)
    return parse_spec(read_yaml(path), origin=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. SpecError names the file and its fault."""
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader=Yaml12Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {_one_line(error)}") from error
    except yaml.YAMLError as error:
        bracket = "but got '['" in str(error)
        quote = ', and names with brackets need quotes in a list: ["xlstm[7:1]"]' if bracket else ""
        raise SpecError(f"{path}: not valid YAML: {_one_line(error)}{quote}") from error
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: holds {type(fields).__name__}, not a mapping of keys")
    return fields


def find_spec(source: str | Path) -> Path:
    """Path of a sweep's spec: a file, or the name of a shipped profile."""
    return find_profile(source, PROFILES)


def find_profile(source: str | Path, profiles: Path) -> Path:
    """Path of a spec: a file, or the name of one of `profiles`."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise SpecError(f"{path}: no such file")
    profile = profiles / f"{source}.yaml"
    if not profile.is_file():
        known = ", ".join(sorted(p.stem for p in profiles.glob("*.yaml")))
        raise SpecError(f"profile {source!r}: not known; use one of {known}, or the path of a .yaml file")
    return profile


def parse_spec(fields: dict[str, Any], origin: str = "spec") -> SweepSpec:
    """Validate a mapping; SpecError lists every fault as `origin: key = value: what would be right`."""
    return parse_fields(SweepSpec, fields, origin)


def parse_fields(kind: type[Spec], fields: dict[str, Any], origin: str) -> Spec:
    """`parse_spec` for any kind of spec."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        faults = (_fault(kind, origin, fault) for fault in error.errors())
        raise SpecError("; ".join(faults)) from error


def json_schema() -> str:
    """JSON Schema of a spec, for editors."""
    return json.dumps(SweepSpec.model_json_schema(), indent=2)


def _fault(kind: type[BaseModel], origin: str, fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"] if part not in ("all", "[key]")) or "spec"
    if fault["type"] == "extra_forbidden":
        return f"{origin}: {key}: unknown key{_suggestion(kind, fault['loc'])}"
    if fault["type"] == "missing":
        return f"{origin}: {key}: required and missing"
    message = fault["msg"].removeprefix("Value error, ")
    value = repr(fault["input"])
    shown = f" = {value}" if len(value) <= 80 else ""
    return f"{origin}: {key}{shown}: {_one_line(message)}"


def _suggestion(kind: type[BaseModel], loc: tuple[Any, ...]) -> str:
    schema = kind.model_json_schema(mode="serialization")
    node: Any = schema
    for part in loc[:-1]:
        node = _resolve(node, schema)
        node = node.get("items") or node.get("additionalProperties") or node["properties"].get(part, {})
    names = list(_resolve(node, schema).get("properties", {}))
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if option.get("type") != "null":
            node = option
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
