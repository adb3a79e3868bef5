"""The reader of pickles: plain data comes through, code does not run, damage is an error with a name."""

import copyreg
import os
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.published import pickles
from sweeps.published.pickles import Call, Name, PickleRefused, parse_pickle, read_pickle

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
KEYS = st.one_of(st.text(), st.integers(), st.tuples(st.text(), st.integers()))
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(KEYS, inner), st.tuples(inner, inner), st.sets(st.integers())
    ),
    max_leaves=20,
)
NOTHING: Callable[[Name], bool] = lambda name: False  # noqa: E731
ANYTHING: Callable[[Name], bool] = lambda name: True  # noqa: E731


class Evil:
    """Runs a command where a pickle of it is loaded by pickle.load."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@settings(deadline=None, derandomize=True, max_examples=150)
@given(data=PLAIN, protocol=st.integers(2, 5))
def test_plain_data_comes_through(data: Any, protocol: int) -> None:
    known = {"builtins.set", "__builtin__.set", "_codecs.encode", "__builtin__.bytes"}
    found = parse_pickle(pickle.dumps(data, protocol=protocol), lambda name: str(name) in known)
    assert _as_python(found) == data


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols(protocol: int) -> None:
    data = {"a": [1, 2.5, None, True, (3, "x")], "b": {"c": []}}
    assert parse_pickle(pickle.dumps(data, protocol=protocol), NOTHING) == data


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("payload", "module", "name"),
    [
        (Evil(os.system, "touch OWNED"), os.system.__module__, "system"),
        (Evil(eval, "open('OWNED', 'w')"), "builtins", "eval"),
        (Evil(getattr, "text", "upper"), "builtins", "getattr"),
        ([{"deep": (1, [Evil(exec, "open('OWNED', 'w')")])}], "builtins", "exec"),
        (OrderedDict(a=1), "collections", "OrderedDict"),
    ],
    ids=["os.system", "eval", "getattr", "nested exec", "harmless class"],
)
def test_what_would_run_is_refused_by_name(
    payload: Any, module: str, name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps(payload, protocol=protocol))
    with pytest.raises(PickleRefused) as error:
        read_pickle(file, NOTHING)
    shown = {"builtins": "__builtin__"}.get(module, module) if protocol < 3 else module
    assert f"wants '{name}' of module '{shown}'" in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "OWNED").exists()


def test_nothing_runs_even_where_everything_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allow-list is a second wall: a call stays a description of itself."""
    monkeypatch.chdir(tmp_path)
    found = parse_pickle(pickle.dumps(Evil(os.system, "touch OWNED")), ANYTHING)
    assert isinstance(found, Call)
    assert found.name.name == "system"
    assert found.args == ("touch OWNED",)
    assert not (tmp_path / "OWNED").exists()


def test_state_of_an_evil_class_is_not_set() -> None:
    """BUILD calls __setstate__ in pickle; here it only remembers."""
    stream = b"\x80\x04cposix\nsystem\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    found = parse_pickle(stream, ANYTHING)
    assert found.state == {"a": 1}


def test_a_callable_cannot_come_from_data() -> None:
    stream = b"\x80\x04X\x02\x00\x00\x00os(tR."
    with pytest.raises(PickleRefused, match="Name was due, str is there"):
        parse_pickle(stream, ANYTHING)


def test_the_extension_registry_is_not_asked() -> None:
    """Codes of copyreg name a class by number, out of sight of an allow-list."""
    copyreg.add_extension("posix", "system", 200)
    try:
        stream = b"\x80\x02\x82\xc8X\x04\x00\x00\x00true\x85R."
        assert "EXT1" in {operation.name for operation, _, _ in pickletools.genops(stream)}
        with pytest.raises(PickleRefused, match="uses the instruction EXT1"):
            parse_pickle(stream, ANYTHING)
    finally:
        copyreg.remove_extension("posix", "system", 200)


@pytest.mark.parametrize(
    ("stream", "instruction"),
    [
        (b"\x80\x04X\x01\x00\x00\x00aQ.", "BINPERSID"),
        (b"Pabc\n.", "PERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_instructions_that_reach_outside_are_refused(stream: bytes, instruction: str) -> None:
    with pytest.raises(PickleRefused, match=f"uses the instruction {instruction}"):
        parse_pickle(stream, ANYTHING)


def test_a_dotted_or_strange_name_is_shown_without_its_tricks() -> None:
    stream = b"\x80\x04\x8c\x03\x1b[2\x8c\x03a\nb\x93."
    with pytest.raises(PickleRefused) as error:
        parse_pickle(stream, NOTHING)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=PLAIN, cut=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_is_refused(data: Any, cut: float) -> None:
    stream = pickle.dumps(data, protocol=4)
    with pytest.raises(PickleRefused):
        parse_pickle(stream[: int(cut * len(stream))], lambda name: name.name == "set")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(data=PLAIN, place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(data: Any, place: float, byte: int) -> None:
    stream = bytearray(pickle.dumps(data, protocol=4))
    stream[int(place * len(stream))] = byte
    _read_or_refuse(bytes(stream))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(stream=st.binary(max_size=60))
def test_noise_is_read_or_refused(stream: bytes) -> None:
    _read_or_refuse(stream)
    _read_or_refuse(b"\x80\x04" + stream + b".")


def test_a_claim_of_gigabytes_costs_nothing() -> None:
    """Lengths and memo places beyond the file, each of which has made pickle reserve the memory."""
    for stream in (
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",  # a bytearray of a terabyte
        b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"a.",
        b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"N.",
    ):
        _read_or_refuse(stream)
    assert parse_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.", NOTHING) is None


def test_a_deep_nest_neither_overflows_the_stack_nor_is_hashed() -> None:
    deep = b"\x80\x02)" + b"\x85" * 200_000
    assert isinstance(parse_pickle(deep + b".", NOTHING), tuple)
    with pytest.raises(PickleRefused, match="has a tuple as a key"):
        parse_pickle(b"\x80\x02}" + deep[2:] + b"Ns.", NOTHING)


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_BYTES", 10)
    (tmp_path / "huge.pkl").write_bytes(b"\x80\x04" + b"N0" * 10 + b"N.")
    with pytest.raises(PickleRefused, match=r"huge\.pkl: 24 bytes, more than the 10"):
        read_pickle(tmp_path / "huge.pkl", NOTHING)
    with pytest.raises(PickleRefused, match=r"absent\.pkl: cannot be read: No such file"):
        read_pickle(tmp_path / "absent.pkl", NOTHING)


def _read_or_refuse(stream: bytes) -> None:
    with suppress(PickleRefused):
        parse_pickle(stream, ANYTHING)


def _as_python(value: Any) -> Any:
    """What the calls of plain data mean: sets and bytes of the older protocols."""
    if isinstance(value, Call):
        args = [_as_python(arg) for arg in value.args]
        if value.name.name == "encode":
            return args[0].encode(args[1])
        return {"set": set, "bytes": bytes}[value.name.name](*args)
    if isinstance(value, list | tuple):
        return type(value)(map(_as_python, value))
    if isinstance(value, dict):
        return {key: _as_python(item) for key, item in value.items()}
    return value
