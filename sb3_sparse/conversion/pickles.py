"""
What a pickle says, without doing it.

A pickle is a program for a small machine: some instructions put data on a stack, others import something, call it, and set
the state of what comes back. :func:`read_pickle` follows the program and writes down what it asks for: nothing is imported,
called or set, whatever it names. :mod:`sb3_sparse.conversion.plain_values` then makes values of what it knows.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any


class Unreadable(ValueError):
    """
    Something that is no data, or of no kind that is known.

    :param what: What it is.
    :param path: Where in the value, empty for the value itself.
    """

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(f"{path} is {what}" if path else what)
        self.what = what
        self.path = path


@dataclass(eq=False)
class Named:
    """
    Something that a pickle would import.

    :param module: Its module.
    :param name: Its name in there.
    """

    module: str
    name: str

    @property
    def full(self) -> str:
        """``"module:name"``."""
        return f"{self.module}:{self.name}"


@dataclass(eq=False)
class Called:
    """
    Something that a pickle would get from a call.

    :param function: What it would call: something :class:`Named`, or the result of another call.
    :param arguments: With what.
    :param state: What it would set then; None: nothing.
    :param items: What it would append then.
    :param entries: What it would set as entries then: keys and values.
    """

    function: Any
    arguments: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def full(self) -> str:
        """Name of the function, empty if that comes from another call."""
        return self.function.full if isinstance(self.function, Named) else ""


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
#: Instructions that put their argument on the stack.
_DATA = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}


class _Machine:
    """Follows a program."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def follow(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if name in _DATA:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif (follow := getattr(self, f"_{name.lower()}", None)) is not None:
            follow(argument)
        else:
            # Persistent ids, registered extensions, buffers that travel apart: none of them is in a model's file
            raise Unreadable(f"a pickle with the instruction {name}")

    # --- Containers ---

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self.to_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _list(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def _frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(self.to_mark()))

    def _dict(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _short_tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        items = self.stack[-size:]
        self.stack[-size:] = [tuple(items)]

    def _tuple1(self, _: Any) -> None:
        self._short_tuple(1)

    def _tuple2(self, _: Any) -> None:
        self._short_tuple(2)

    def _tuple3(self, _: Any) -> None:
        self._short_tuple(3)

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self.to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Called) else target
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def _additems(self, _: Any) -> None:
        items, target = self.to_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise TypeError
        target.update(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([(key, value)])

    def _setitems(self, _: Any) -> None:
        items = self.to_mark()
        self._set(list(zip(items[::2], items[1::2], strict=True)))

    def _set(self, entries: list[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if isinstance(target, Called):
            target.entries.extend(entries)
        elif isinstance(target, dict):
            target.update(entries)
        else:
            raise TypeError

    # --- What a real machine would do something for ---

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self.stack.append(Named(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Called(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Called(function, arguments if not keywords else (arguments, keywords)))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Called(Named(module, name), tuple(self.to_mark())))

    def _obj(self, _: Any) -> None:
        function, *arguments = self.to_mark()
        self.stack.append(Called(function, tuple(arguments)))

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Called):
            raise TypeError
        target.state = state


def read_pickle(data: bytes) -> Any:
    """
    Say what a pickle would make.

    :param data: A pickle.
    :return: Numbers, text, bytes and containers as they are; :class:`Named` and :class:`Called` in place of what it would
        import and call.
    :raises Unreadable: If it is no pickle, or uses what files of models do not have.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            machine.follow(opcode.name, argument)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"no pickle that can be followed ({type(error).__name__})") from error
    raise Unreadable("a pickle that was cut off")
