"""Arguments of public functions are what the signature says, or it is said which is not, before anything is done."""

import builtins
import functools
import inspect
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from geneformer_repro.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
_SHOWN = 60


def require_at_least(**options: tuple[int | None, int]) -> None:
    """Refuse numbers below a bound; of each option what was given, where None is fine, and the bound.

    Raises
    ------
    InputError
        Names the option, the bound and what was given.
    """
    for name, (given, least) in options.items():
        if given is not None and given < least:
            raise InputError(f"{name} must be at least {least}, found {given}.")


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function so that it refuses arguments that are not of the types of its signature.

    NumPy's numbers, arrays and pandas' columns stand for numbers and sequences; what a text may say is left to the
    function, which knows the choices.

    Raises
    ------
    InputError
        Names the function, the argument, what it must be and what it is.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        hints, given = _hints(function), {}
        with suppress(TypeError):  # of a missing or unknown argument, which the call itself says better
            given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if name in hints and not _fits(value, hints[name]):
                wanted = str(signature.parameters[name].annotation)
                way_out = ' Give its RNA: mdata["rna"].' if type(value).__name__ == "MuData" else ""
                raise InputError(
                    f"{function.__qualname__}: {name} must be {_as_written(wanted)}, found {repr(value)[:_SHOWN]} "
                    f"({type(value).__name__}).{way_out}"
                )
        return function(*args, **kwargs)

    return checked


def _as_written(annotation: str) -> str:
    """Return an annotation as it is written, without the modules that names come from."""
    return re.sub(r"\b(\w+\.)+(?=\w)", "", annotation.removeprefix("<class '").removesuffix("'>"))


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = inspect.unwrap(function)
    return typing.get_type_hints(inner, localns=_Names(inner.__globals__))


class _Names(dict[str, Any]):
    """Names of a module; of one that is imported for type checks only, whatever class is called so."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return _Called(name, (), {})


class _Called(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return any(base.__name__ == cls.__name__ for base in type(value).__mro__)


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar) or origin is type:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inside)
    if origin is typing.Literal:
        return any(isinstance(value, type(choice)) for choice in inside)
    if origin is not None and origin is not Callable and issubclass(origin, Iterable):
        return _is_kind_of(value, origin) and _all_fit(value, inside)
    return _is_kind_of(value, type(None) if hint is None else origin or hint)


def _is_kind_of(value: Any, kind: type) -> bool:
    if kind in (int, float):
        of = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, of) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind is Sequence:
        return (isinstance(value, Sequence) and not isinstance(value, bytes)) or (
            hasattr(value, "__array__") and hasattr(value, "__len__")
        )
    return isinstance(value, kind)


def _all_fit(value: Any, inside: tuple[Any, ...]) -> bool:
    if isinstance(value, Mapping) or not isinstance(value, list | tuple) or not inside:
        return True
    return all(_fits(item, inside[0]) for item in value)
