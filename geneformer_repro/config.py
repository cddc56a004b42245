"""Configurations are frozen dataclasses beside what they configure; this module fills them from TOML.

A field may be a configuration itself, a `Section`: a table in TOML, ``--set training.epochs=3`` on the command line, a
mapping or an instance in Python. TOML, not YAML: PyYAML reads ``1e-4`` as a string and ``no`` as False.
"""

import dataclasses
import functools
import inspect
import logging
import math
import numbers
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from geneformer_repro.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

Config = TypeVar("Config")


class ConfigError(InputError):
    """A configuration names an unknown key, or a value of the wrong type or out of its bounds."""


class Section(Generic[Config]):
    """A field of a configuration that is a configuration; it may be given as a mapping of its fields.

    Parameters
    ----------
    config_type
        A frozen dataclass. It is the default, unless it must be told something. Its ``section`` says in messages what
        the field is called.
    """

    def __init__(self, config_type: type[Config]) -> None:
        self.config_type = config_type

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type | None = None) -> Config:
        if config is not None:
            return typing.cast(Config, config.__dict__[self.name])
        try:
            return self.config_type()
        except (TypeError, ConfigError) as error:  # which tells dataclasses that there is no default
            raise AttributeError(self.name) from error

    def __set__(self, config: Any, value: Any) -> None:
        config.__dict__[self.name] = self.filled(value, source=type(config).__name__)

    def filled(self, value: Any, *, source: str) -> Config:
        """Return an instance of a section that was given as one or as a mapping."""
        if isinstance(value, self.config_type):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {self.name} must be a table, found {value!r} ({type(value).__name__}).")
        return _filled(self.config_type, value, source=source, table=f"{self.name}.")


def sections_of(config_type: type) -> dict[str, Section[Any]]:
    """Return the sections of a configuration by name."""
    static = {name: inspect.getattr_static(config_type, name, None) for name in names_in(config_type)}
    return {name: value for name, value in static.items() if isinstance(value, Section)}


def with_settings(config: Config, **settings: Any) -> Config:
    """Return a configuration with other settings, each in its own place or that of the first section which has it."""
    changes: dict[str, Any] = {}
    of_sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        first, *inside = _place(type(config), name)
        (of_sections.setdefault(first, {}) if inside else changes)[name] = value
    changes |= {name: dataclasses.replace(getattr(config, name), **of) for name, of in of_sections.items()}
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def setting(config: Any, name: str) -> Any:
    """Return the value of a setting, wherever it stands; see `with_settings`."""
    return functools.reduce(getattr, _place(type(config), name), config)


def names_in(config_type: type) -> list[str]:
    """Return the names of a configuration's fields."""
    return [field.name for field in dataclasses.fields(config_type)]


def _place(config_type: type, name: str) -> tuple[str, ...]:
    """Say where a setting stands: its name, after that of a section if it is in one."""
    if name not in names_in(config_type):
        for section, of_section in sections_of(config_type).items():
            if name in names_in(of_section.config_type):
                return section, name
    return (name,)


def load_config(config_type: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Make a configuration from a TOML file and ``key=value`` overrides; the overrides win.

    Parameters
    ----------
    config_type
        A frozen dataclass.
    path
        A TOML file with the dataclass's fields as keys, its sections as tables; None for the defaults.
    overrides
        Assignments such as ``"training.epochs=3"``; values are TOML, a bare word is a string,
        a dotted key reaches into a table. Each key once.

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
        values = _in_sections(config_type, values)
    assigned: list[tuple[str, ...]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value.")
        keys = dotted(key.strip(), override)
        value = toml_value(text.strip(), override)
        keys = (*_moved(config_type, keys[0], value if len(keys) == 1 else {}), *keys[1:])
        if any(keys[: len(other)] == other[: len(keys)] for other in assigned):
            raise ConfigError(
                f"--set {override}: {'.'.join(keys)} is set twice, in --set or by an option of its own; give it once."
            )
        assigned.append(keys)
        _assign(values, keys, value)
    return from_mapping(config_type, values, source=str(path) if path else "configuration")


def from_mapping(config_type: type[Config], values: Mapping[str, Any], *, source: str = "configuration") -> Config:
    """Make a configuration from a mapping of its fields; see `load_config`."""
    return _filled(config_type, _in_sections(config_type, values), source=source)


def _filled(config_type: type[Config], values: Mapping[str, Any], *, source: str, table: str = "") -> Config:
    hints, sections, filled = typing.get_type_hints(config_type), sections_of(config_type), {}
    for key, value in values.items():
        if key not in names_in(config_type):
            inside = [f"{name}.{field}" for name in sections for field in names_in(sections[name].config_type)]
            valid = sorted(names_in(config_type)) + inside
            called = table.rstrip(".") or config_type.__name__
            raise ConfigError(f"{source}: {called} has no field {key!r}. {did_you_mean(key, valid)}")
        if key in sections:
            filled[key] = sections[key].filled(value, source=source)
        else:
            filled[key] = checked(value, hints[key], f"{source}: {table}{key}")
    for one in dataclasses.fields(config_type):  # type: ignore[arg-type]
        if one.name not in filled and one.default is one.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"{source}: {table or f'{config_type.__name__}.'}{one.name} is missing; it must be given."
            )
    return config_type(**filled)


def require_types(config: Any) -> None:
    """In ``__post_init__``: raise a `ConfigError` that names a field whose value is not of its type.

    A value that stands for one of the type, as an int for a float or a list for a tuple, becomes that.
    """
    hints, sections = typing.get_type_hints(type(config)), sections_of(type(config))
    for name in set(names_in(type(config))) - set(sections):
        object.__setattr__(config, name, checked(getattr(config, name), hints[name], _called(config, name)))


def resolved(config: Any) -> dict[str, Any]:
    """Return every field of a configuration with its value, as JSON can hold it."""
    return dataclasses.asdict(config)


def require(condition: bool, config: Any, field: str, bound: str) -> None:
    """In ``__post_init__``: raise a `ConfigError` that names field, bound and value unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{_called(config, field)} must be {bound}, found {getattr(config, field)!r}.")


def _called(config: Any, field: str) -> str:
    """Return what a field is called in messages, as the user wrote it where it stands in a section."""
    return f"{getattr(config, 'section', type(config).__name__)}.{field}"


def _assign(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {'.'.join(keys)}: {key} is not a table.")
    values[keys[-1]] = value


def dotted(key: str, override: str) -> tuple[str, ...]:
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


def toml_value(text: str, override: str) -> Any:
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


def checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` wants it (an int may stand for a float, a list for a tuple), or raise."""
    value = _plain(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        errors = []
        for option in arguments:
            try:
                return checked(value, option, where)
            except ConfigError as error:
                if option is not types.NoneType:
                    errors.append(str(error))
        raise ConfigError(" Or: ".join(errors))
    if origin is typing.Literal:
        if isinstance(value, bool) or value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, found {value!r}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(checked(item, arguments[0], where) for item in value)
    expected = origin or hint
    if expected in (dict, typing.get_origin(Mapping[str, Any])):
        if isinstance(value, Mapping):
            return {key: checked(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
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


# For one release: names from before there were sections


def flat_names(**renamed: str) -> Callable[[type[Config]], type[Config]]:
    """Decorate a configuration so that settings may be given, and read, by their names without a section.

    Parameters
    ----------
    renamed
        Of a setting whose name a section has now, its name in that section.
    """

    def decorated(config_type: type[Config]) -> type[Config]:
        fill = config_type.__init__

        @functools.wraps(fill)
        def init(self: Any, **settings: Any) -> None:
            fill(self, **_in_sections(config_type, settings))

        def read(self: Any, name: str) -> Any:
            section, *inside = _place(config_type, name)
            if not inside:
                raise AttributeError(f"{config_type.__name__!r} object has no attribute {name!r}", name=name, obj=self)
            _tell(name, section, name)
            return getattr(getattr(self, section), name)

        for name, value in {"__init__": init, "__getattr__": read, "_renamed": renamed}.items():
            setattr(config_type, name, value)
        return config_type

    return decorated


def _in_sections(config_type: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with each that was given by its earlier name in its section."""
    places = {name: _moved(config_type, name, value) for name, value in values.items()}
    placed: dict[str, Any] = {name: values[name] for name, (_, *inside) in places.items() if not inside}
    for name, (section, *inside) in places.items():
        for field in inside:
            before = placed.get(section, {})
            if not isinstance(before, Mapping):
                placed[section] = dataclasses.replace(before, **{field: values[name]})
            elif field in before:
                raise ConfigError(f"{section}.{field} is given twice, also as {name}. Give it once.")
            else:
                placed[section] = {**before, field: values[name]}
    return placed


def _moved(config_type: type, name: str, value: Any) -> tuple[str, ...]:
    """Say where a setting of an earlier name stands now, also in the log; one that is in its place stays."""
    renamed = getattr(config_type, "_renamed", None)
    if renamed is None:
        return (name,)
    place = _place(config_type, name)
    if name in renamed and not isinstance(value, Mapping | sections_of(config_type)[name].config_type):
        place = name, renamed[name]
    if len(place) > 1:
        _tell(name, *place)
    return place


def _tell(name: str, *place: str) -> None:
    logger.warning("%s is %s now; the name without its section works until the next release.", name, ".".join(place))
