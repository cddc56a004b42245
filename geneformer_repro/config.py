"""Configurations are frozen dataclasses beside what they configure; this module fills them from TOML.

TOML, not YAML: PyYAML reads ``1e-4`` as a string and ``no`` as False.
"""

import dataclasses
import math
import numbers
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from geneformer_repro.errors import InputError, did_you_mean

Config = TypeVar("Config")


class ConfigError(InputError):
    """A configuration names an unknown key, or a value of the wrong type or out of its bounds."""


def load_config(config_type: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Make a configuration from a TOML file and ``key=value`` overrides; the overrides win.

    Parameters
    ----------
    config_type
        A frozen dataclass.
    path
        A TOML file with the dataclass's fields as keys; None for the defaults.
    overrides
        Assignments such as ``"epochs=3"``; values are TOML, a bare word is a string,
        a dotted key reaches into a table (``"trainer.bf16=true"``). Each key once.

    Raises
    ------
    ConfigError
        The file is not TOML, a key or value is not valid, or a key is assigned twice; unknown keys come with the
        nearest valid one.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise ConfigError(f"{path}: not valid TOML ({error}).") from error
    assigned: list[tuple[str, ...]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value.")
        keys = _keys(key.strip(), override)
        if any(keys[: len(other)] == other[: len(keys)] for other in assigned):
            raise ConfigError(
                f"--set {override}: {'.'.join(keys)} is set twice, in --set or by an option of its own; give it once."
            )
        assigned.append(keys)
        _assign(values, keys, _toml_value(text.strip(), override))
    return from_mapping(config_type, values, source=str(path) if path else "configuration")


def from_mapping(config_type: type[Config], values: Mapping[str, Any], *, source: str = "configuration") -> Config:
    """Make a configuration from a mapping of its fields; see `load_config`."""
    fields = {field.name for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(config_type)
    filled = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"{source}: {config_type.__name__} has no field {key!r}. {did_you_mean(key, sorted(fields))}"
            )
        filled[key] = _checked(value, hints[key], f"{source}: {key}")
    try:
        return config_type(**filled)
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from error


def require_types(config: Any) -> None:
    """In ``__post_init__``: raise a `ConfigError` that names a field whose value is not of its type.

    A value that stands for one of the type, as an int for a float or a list for a tuple, becomes that.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        where = f"{type(config).__name__}.{field.name}"
        object.__setattr__(config, field.name, _checked(getattr(config, field.name), hints[field.name], where))


def resolved(config: Any) -> dict[str, Any]:
    """Return every field of a configuration with its value, as JSON can hold it."""
    return dataclasses.asdict(config)


def require(condition: bool, config: Any, field: str, bound: str) -> None:
    """In ``__post_init__``: raise a `ConfigError` that names field, bound and value unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{type(config).__name__}.{field} must be {bound}, found {getattr(config, field)!r}.")


def _assign(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {'.'.join(keys)}: {key} is not a table.")
    values[keys[-1]] = value


def _keys(key: str, override: str) -> tuple[str, ...]:
    """Cut a dotted key; names with dots or the like are quoted."""
    try:
        parsed: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        keys = tuple(name.strip() for name in key.split("."))
    else:
        keys = ()
        while isinstance(parsed, dict) and len(parsed) == 1:
            ((name, parsed),) = parsed.items()
            keys = (*keys, name)
    if not keys or not all(keys) or any(mark in key for mark in "\n\r#[]"):
        raise ConfigError(f"--set {override}: {key!r} is no key. Expected a field, or table.field, before the '='.")
    return keys


def _toml_value(text: str, override: str) -> Any:
    """Read a value as TOML; what is no TOML is text, unless it begins as what only TOML has."""
    try:
        read = tomllib.loads(f"value = {text}")
    except ValueError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(f"--set {override}: the value is not valid TOML ({error}).") from error
        return text
    if len(read) > 1:
        raise ConfigError(f"--set {override}: holds more than one value; give each setting its own key=value.")
    return read["value"]


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` wants it (an int may stand for a float, a list for a tuple), or raise."""
    value = _plain(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        errors = []
        for option in arguments:
            try:
                return _checked(value, option, where)
            except ConfigError as error:
                if option is not types.NoneType:
                    errors.append(str(error))
        raise ConfigError(" Or: ".join(errors))
    if origin is typing.Literal:
        if isinstance(value, bool) or value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, found {value!r}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(item, arguments[0], where) for item in value)
    expected = origin or hint
    if expected in (dict, typing.get_origin(Mapping[str, Any])):
        if isinstance(value, Mapping):
            return {key: _checked(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
        expected = dict
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, found {value!r}.")
    if hint is Any or (isinstance(value, expected) and not (expected is int and isinstance(value, bool))):
        return value
    raise ConfigError(
        f"{where} must be {getattr(expected, '__name__', expected)}, found {value!r} ({type(value).__name__})."
    )


def _plain(value: Any) -> Any:
    """Turn NumPy's numbers into Python's, and a path into text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)
