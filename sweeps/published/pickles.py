"""Pickles from strangers, read as data: nothing that a file names is imported, called or built.

A pickle is a program for a small stack machine, two of whose instructions import and call. This reader runs
the same program and gives those two no power: a name stays a `Name`, a call stays a `Call` that says what
would have been called with what. So there is no code to escape into. Names outside `allowed` are refused all
the same, so that a file with something else in it is noticed and named.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 2 << 30
"""The authors' largest file has tens of megabytes."""


class PickleRefused(ValueError):
    """A pickle that is not read; one line that names the file and what in it was refused."""


@dataclass(frozen=True)
class Name:
    """`module.name`, as a pickle writes it. Nothing looks it up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """What a pickle wanted to build: `name(*args)`, then given `state`."""

    name: Name
    args: tuple[Any, ...] = ()
    state: Any = None


Allowed = Callable[[Name], bool]


def read_pickle(path: Path, allowed: Allowed) -> Any:
    """The data of a pickle: scalars, lists, tuples, dictionaries and sets, and `Call`s for everything else.

    Raises PickleRefused, naming the file, where it is no pickle, is cut off, is larger than MAX_BYTES, or
    names a module and class that `allowed` does not know.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise PickleRefused(f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} that are read")
        data = path.read_bytes()
    except OSError as error:
        raise PickleRefused(f"{path}: cannot be read: {error.strerror}") from error
    return parse_pickle(data, allowed, origin=str(path))


def parse_pickle(data: bytes, allowed: Allowed, *, origin: str = "pickle") -> Any:
    """`read_pickle` of bytes; `origin` names them in errors."""
    machine = _Machine(allowed)
    try:
        for opcode, argument, _ in _operations(data):
            if opcode == "STOP":
                return machine.result()
            machine.step(opcode, argument)
    except PickleRefused as error:
        raise PickleRefused(f"{origin}: {error}") from None
    except (IndexError, KeyError, TypeError, AttributeError):
        raise PickleRefused(f"{origin}: is damaged: its instructions do not fit together") from None
    raise PickleRefused(f"{origin}: is cut off: it has no end")


def _operations(data: bytes) -> Iterator[tuple[str, Any, int | None]]:
    operations = pickletools.genops(data)
    while True:
        try:
            opcode, argument, position = next(operations)
        except StopIteration:
            return
        except (ValueError, UnicodeError, OverflowError) as error:
            raise PickleRefused(f"is no pickle, or is cut off: {' '.join(str(error).split())}") from None
        yield opcode.name, argument, position


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SCALARS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_IGNORED = frozenset({"PROTO", "FRAME"})
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Machine:
    """Pickle's stack and memo."""

    allowed: Allowed
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _SCALARS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode not in _IGNORED:
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise PickleRefused(f"uses the instruction {opcode}, which plain data does not need; refused")
            handler(self, argument)

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise PickleRefused("is damaged: its instructions do not fit together")
        return self.stack[0]

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def build_list(self, _: Any) -> None:
        self.stack.append(self._pop_to_mark())

    def build_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def build_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._set(items)

    def build_set(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.stack.append(frozenset(map(_key, items)))

    def append(self, _: Any) -> None:
        self._extend(self._pop(1))

    def appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def add_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        _expect(self.stack[-1], set).update(map(_key, items))

    def set_item(self, _: Any) -> None:
        self._set(self._pop(2))

    def set_items(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def global_name(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def stack_global(self, _: Any) -> None:
        self._push_name(*self._pop(2))

    def instance(self, argument: Any) -> None:
        args = self._pop_to_mark()
        self.global_name(argument)
        self._call(self.stack.pop(), tuple(args))

    def object_on_stack(self, _: Any) -> None:
        name, *args = self._pop_to_mark()
        self._call(name, tuple(args))

    def reduce(self, _: Any) -> None:
        self._call(*self._pop(2))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        _expect(self.stack[-1], Call).state = state

    def _push_name(self, module: Any, name: Any) -> None:
        found = Name(_expect(module, str), _expect(name, str))
        if not self.allowed(found):
            name, module = ascii(found.name[:80]), ascii(found.module[:80])
            raise PickleRefused(f"wants {name} of module {module}, which published runs do not need; refused")
        self.stack.append(found)

    def _call(self, name: Any, args: Any) -> None:
        self.stack.append(Call(_expect(name, Name), _expect(args, tuple)))

    def _extend(self, items: list[Any]) -> None:
        _expect(self.stack[-1], list).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = _expect(self.stack[-1], dict)
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise PickleRefused("is damaged: a dictionary has a key without a value")
        target.update(zip(map(_key, keys), values, strict=True))

    def _pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0:
            raise IndexError
        items = self.stack[start:]
        del self.stack[start:]
        if any(item is _MARK for item in items):
            raise TypeError
        return items

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "LIST": _Machine.build_list,
    "TUPLE": _Machine.build_tuple,
    "DICT": _Machine.build_dict,
    "FROZENSET": _Machine.build_set,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_on_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
    "BUILD": _Machine.build,
}
"""Left out on purpose: persistent ids, the extension registry, out-of-band buffers, NEWOBJ_EX."""


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleRefused(
            f"is damaged, or no plain data: {kind.__name__} was due, {type(value).__name__} is there"
        )
    return value


def _key(value: Any) -> Any:
    """A key of plain data. The hash of a deeply nested tuple overflows the C stack: none is asked for."""
    if isinstance(value, tuple) and all(isinstance(part, str | int | float | None) for part in value):
        return value
    if not isinstance(value, str | int | float | bytes | None):
        raise PickleRefused(f"has a {type(value).__name__} as a key; refused")
    return value
