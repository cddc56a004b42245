"""Pickled dictionaries of others, read without letting them run code, crash the interpreter or fill memory.

A pickle is a program. Its steps are first followed without building anything (2 s for the four published dictionaries):
only constants, containers and a few calls may occur; containers may not be nested deeply, since the interpreter crashes
where such are hashed or freed; and no container may be used in two places, by which forty lines become a tree of a
million million items. Then the dictionary is built, by an unpickler that knows these few calls alone.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_repro.errors import InputError

_MOST_BYTES = 2**28
_DEEPEST = 16
_CALLED = {
    *(("builtins", name) for name in ("set", "frozenset", "complex", "bytes")),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}
_MADE_CONTAINERS = ("set", "frozenset", "OrderedDict")
_NUMPY_SCALAR = re.compile(r"numpy(\.core|\._core)?(\.multiarray|\.numeric)?$")
_STEPS = {
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD", "PROTO", "FRAME", "STOP", "POP", "POP_MARK",
    "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "DICT", "FROZENSET",
}  # fmt: skip
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"}
_CONSTANTS = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip


def write_plain_pickle(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of plain data for code that reads nothing else."""
    path.write_bytes(pickle.dumps(content, protocol=4))


def read_plain_pickle(path: Path) -> dict[Any, Any]:
    """Read a pickled dictionary of plain data without letting it run code.

    Parameters
    ----------
    path
        A pickle whose content is a dictionary of builtin containers, strings, numbers and numpy scalars, no more than
        16 deep, each container in one place, and of at most 256 MB.

    Raises
    ------
    InputError
        The file refers to anything else (it is not opened further), is damaged, or is not a dictionary.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise pickle.UnpicklingError(f"it has {path.stat().st_size:,} bytes, more than {_MOST_BYTES:,}")
        program = path.read_bytes()
        _check_program(program)
        content = _PlainUnpickler(io.BytesIO(program)).load()
    except Exception as error:
        raise InputError(
            f"{path}: refused as a dictionary of plain data: {error}. Only builtin containers, strings, numbers and "
            f"numpy scalars are read from pickles."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a dictionary, found a {type(content).__name__}.")
    return content


@dataclass(slots=True)
class _Item:
    """What a pickle would have on its stack."""

    size: int = 1
    """Of a text its length, of a tuple that of its items."""
    depth: int = 0
    text: str | None = None
    refers: tuple[str, str] | None = None
    """Module and name of what can be called."""
    is_container: bool = False


_CONSTANT, _MARK = _Item(), _Item()


def _check_program(program: bytes) -> None:
    """Raise unless a pickle builds plain data alone, in proportion to its own length.

    Raises
    ------
    pickle.UnpicklingError
        Says what it does instead; other exceptions where it is none.
    """
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    called = 0
    argument: Any
    for step, argument, _ in pickletools.genops(program):
        name = step.name
        if name in _CONSTANTS:
            is_text = isinstance(argument, (str, bytes))
            stack.append(
                _Item(len(argument), text=argument if isinstance(argument, str) else None) if is_text else _CONSTANT
            )
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            number = len(memo) if argument is None else int(argument)
            if number > len(program):
                raise pickle.UnpicklingError(f"it remembers a thing under the number {number}")
            memo[number] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            item = memo[int(argument)]
            if item.is_container:
                raise pickle.UnpicklingError("the same list, tuple or dictionary stands in two places of it")
            stack.append(item)
        elif name == "GLOBAL":
            stack.append(_Item(refers=_allowed(*argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            text, module = stack.pop().text, stack.pop().text
            stack.append(_Item(refers=_allowed(str(module), str(text))))
        elif name == "REDUCE":
            inputs, function = stack.pop(), stack.pop()
            called += inputs.size
            if function.refers is None or called > 4 * len(program) + 1000:
                raise pickle.UnpicklingError("it calls what it may not, or makes much of little")
            if function.refers == ("builtins", "bytes") and inputs.size > 1:
                raise pickle.UnpicklingError("it makes bytes of a number")
            stack.append(_Item(inputs.size, inputs.depth, is_container=function.refers[1] in _MADE_CONTAINERS))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _CONTAINERS:
            stack.append(_Item(is_container=True))
        elif name in _STEPS:
            _follow_step(name, stack)
        else:
            raise pickle.UnpicklingError(f"it does {name}, which plain data do not need")


_TAKEN = {"APPEND": 1, "SETITEM": 2, "BUILD": 1, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""How many items a step takes from the stack; others all above the mark."""


def _follow_step(name: str, stack: list[_Item]) -> None:
    """Follow a step that puts items of the stack into a container, or drops them."""
    if name in ("PROTO", "FRAME", "STOP"):
        return
    if name == "POP":
        stack.pop()
        return
    if name in _TAKEN:
        first = len(stack) - _TAKEN[name]
        if first < 0:
            raise pickle.UnpicklingError("it takes what is not there")
    else:
        first = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is _MARK) + 1
    taken = stack[first:]
    del stack[first if name in _TAKEN else first - 1 :]
    if name == "POP_MARK":
        return
    if name.startswith(("TUPLE", "LIST", "DICT", "FROZENSET")):
        whole = _Item(is_container=True)
        stack.append(whole)
    else:
        whole = stack[-1]
    if whole is _CONSTANT or whole is _MARK:
        raise pickle.UnpicklingError("it puts things into a number")
    whole.size += sum(item.size for item in taken)
    whole.depth = max([whole.depth, *(item.depth + 1 for item in taken)])
    if whole.depth > _DEEPEST:
        raise pickle.UnpicklingError(f"its lists, tuples and dictionaries lie more than {_DEEPEST} deep in one another")


def _allowed(module: str, name: str) -> tuple[str, str]:
    """Return what a pickle refers to, if that is one of the few things that plain data need."""
    if module == "__builtin__":  # as Python 2 called it, and protocols up to 2 still write
        module = "builtins"
    if (module, name) in _CALLED or (module, name) == ("numpy", "dtype"):
        return module, name
    if name == "scalar" and _NUMPY_SCALAR.match(module):
        return module, name
    raise pickle.UnpicklingError(f"it refers to {module}.{name}")


class _PlainDtype:
    """Stands in for ``numpy.dtype``, whose own state can be forged to make NumPy read any address."""

    _CODE = re.compile(r"(b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5})\Z")

    def __init__(self, code: str, *_: object) -> None:
        if not self._CODE.match(code):
            raise pickle.UnpicklingError(f"it holds a numpy scalar of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


def _plain_scalar(dtype: _PlainDtype, content: bytes) -> Any:
    (value,) = np.frombuffer(content, dtype=dtype.order + dtype.code)
    return value


class _PlainUnpickler(pickle.Unpickler):
    """Builds what a dictionary of strings and numbers needs and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module, name = _allowed(module, name)
        if name == "scalar":
            return _plain_scalar
        return _PlainDtype if name == "dtype" else super().find_class(module, name)
