"""Every task by its kind, and a task from the fields that a RunSpec or a profile gives for it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from xlstm.capability.modular import ModularArithmetic
from xlstm.capability.parity import Parity
from xlstm.capability.recall import AssociativeRecall
from xlstm.capability.search import NearestNeighbour
from xlstm.capability.text import Domain, DomainText

TaskSpec = Parity | ModularArithmetic | NearestNeighbour | AssociativeRecall | DomainText
KINDS: dict[str, Any] = {
    "parity": Parity,
    "modular": ModularArithmetic,
    "search": NearestNeighbour,
    "recall": AssociativeRecall,
    "text": DomainText,
}


def task_from_dict(given: Mapping[str, Any]) -> TaskSpec:
    """The task of a mapping with its `kind`; lists become tuples. ValueError names an unknown kind or
    field."""
    kind = given.get("kind")
    if kind not in KINDS:
        raise ValueError(f"task.kind = {kind!r}: use one of {', '.join(KINDS)}")
    made = KINDS[kind]
    known = {f.name for f in fields(made)}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"task.{unknown[0]}: unknown key of {kind}; known are {', '.join(sorted(known))}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if kind == "text":
        domains = (Domain(**d) if isinstance(d, Mapping) else d for d in values.get("domains", ()))
        values["domains"] = tuple(domains)
    try:
        return made(**values)
    except TypeError as error:
        raise ValueError(f"task of kind {kind}: {error}") from error
