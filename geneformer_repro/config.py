"""Configurations are frozen dataclasses beside what they configure; this module fills them from TOML.

TOML, not YAML: PyYAML reads ``1e-4`` as a string and ``no`` as False.
"""

import dataclasses
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
        a dotted key reaches into a table (``"trainer.bf16=true"``).

    Raises
    ------
    ConfigError
        The file is not TOML, or a key or value is not valid; unknown keys come with the nearest valid one.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise ConfigError(f"{path}: not valid TOML ({error}).") from error
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value.")
        _assign(values, key.strip().split("."), _toml_value(text.strip()))
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


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` wants it (an int may stand for a float, a list for a tuple), or raise."""
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
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, found {value!r}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(item, arguments[0], where) for item in value)
    expected = origin or hint
    if expected is Mapping or expected is typing.get_origin(Mapping[str, Any]):
        expected = dict
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(value, expected) and not (expected is int and isinstance(value, bool))):
        return value
    raise ConfigError(
        f"{where} must be {getattr(expected, '__name__', expected)}, found {value!r} ({type(value).__name__})."
    )
