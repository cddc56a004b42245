"""Which settings a configuration has, read from its source: importing it would load torch, which takes seconds.

Names and types are looked at, as they stand in the classes; bounds are told when the configuration is made.
"""

import ast
import builtins
import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from geneformer_repro.config import ConfigError, checked, dotted, toml_value
from geneformer_repro.errors import did_you_mean

_PACKAGE = Path(__file__).parents[1]
_UNKNOWN = object()


class _Class(NamedTuple):
    """A dataclass as its source has it."""

    fields: Mapping[str, Any]
    """Name → type, or what stands for one that is not told."""
    sections: Mapping[str, "_Class"]


def require_settings(module: str, name: str, path: str | None, overrides: Sequence[str]) -> None:
    """Raise if settings cannot be those of a configuration, which is not imported.

    Parameters
    ----------
    module, name
        Where in the package it is defined, and what it is called.
    path, overrides
        As of `config.load_config`.

    Raises
    ------
    ConfigError
        A key is unknown, or a value is not of a type that the source names plainly.
    """
    if path is None and not overrides:
        return
    config = _read(module, name)
    if path is not None:
        for keys, value in _leaves(_parsed(path)):
            _require(config, keys, value, name, path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value.")
        _require(config, dotted(key.strip(), override), toml_value(text.strip(), override), name, "configuration")


def setting_names(module: str, name: str) -> list[str]:
    """Return the names of all settings of a configuration, a line a section, which stands before them."""
    config = _read(module, name)
    widest = max(map(len, config.sections), default=0)
    inside = (f"{f'{section}.':<{widest + 1}}  {', '.join(of.fields)}" for section, of in config.sections.items())
    return [", ".join(config.fields), *inside]


def _require(config: _Class, keys: tuple[str, ...], value: Any, name: str, source: str) -> None:
    first, *inside = keys
    places = {field: of for of in config.sections.values() for field in of.fields}
    if first not in config.fields and first not in config.sections and first not in places:
        nested = [f"{section}.{field}" for section, of in config.sections.items() for field in of.fields]
        valid = sorted([*config.fields, *config.sections]) + nested
        raise ConfigError(f"{source}: {name} has no field {first!r}. {did_you_mean(first, valid)}")
    if first in config.sections:
        if inside:
            of_section = config.sections[first]
            if inside[0] not in of_section.fields:
                raise ConfigError(
                    f"{source}: {first} has no field {inside[0]!r}. {did_you_mean(inside[0], of_section.fields)}"
                )
            _require_type(of_section, inside, value, f"{source}: {first}.{inside[0]}")
        return
    _require_type(config if first in config.fields else places[first], keys, value, f"{source}: {first}")


def _require_type(config: _Class, keys: Sequence[str], value: Any, where: str) -> None:
    hint = config.fields[keys[0]]
    if len(keys) == 1 and hint is not _UNKNOWN:
        checked(value, hint, where)


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield keys and values of a file, each of a table of its own."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (((key, *inside), one) for inside, one in _leaves(value))
        else:
            yield (key,), value


def _parsed(path: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # which is said when it is read
        return {}


# The source


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _PACKAGE / f"{module.replace('.', '/')}.py"
    path = path if path.exists() else _PACKAGE / module.replace(".", "/") / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def _defined(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """Return where something is defined, following imports within the package, and its class or value."""
    for node in _tree(module).body:
        match node:
            case ast.ClassDef(name=own) if own == name:
                return module, node
            case ast.Assign(targets=[ast.Name(id=own)], value=value) if own == name:
                return module, value
            case ast.ImportFrom(module=str(home)) if home.startswith("geneformer_repro."):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _defined(home.partition(".")[2], alias.name)
    return None


@functools.cache
def _read(module: str, name: str) -> _Class:
    home, node = _defined(module, name) or (module, None)
    fields: dict[str, Any] = {}
    sections: dict[str, _Class] = {}
    if not isinstance(node, ast.ClassDef):
        return _Class(fields, sections)
    for base in node.bases:
        if isinstance(base, ast.Name):
            inherited = _read(home, base.id)
            fields.update(inherited.fields)
            sections.update(inherited.sections)
    for line in node.body:
        match line:
            case ast.AnnAssign(
                target=ast.Name(id=field), annotation=ast.Subscript(value=ast.Name(id="Section"), slice=ast.Name(id=of))
            ):
                sections[field] = _read(home, of)
                fields.pop(field, None)
            case ast.AnnAssign(target=ast.Name(id=field), annotation=annotation):
                if not ast.unparse(annotation).startswith("ClassVar"):
                    fields[field] = _type_of(home, annotation)
    return _Class(fields, sections)


def _type_of(module: str, annotation: ast.expr) -> Any:
    """Return a plain type; of others what stands for them."""
    match annotation:
        case ast.Name(id="int" | "float" | "bool" | "str" as name):
            return getattr(builtins, name)
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            sides = _type_of(module, left), _type_of(module, right)
            return _UNKNOWN if _UNKNOWN in sides else sides[0] | sides[1]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[ast.literal_eval(choices)]
        case ast.Name(id=name):
            home, value = _defined(module, name) or (module, None)
            return _type_of(home, value) if isinstance(value, ast.expr) else _UNKNOWN
    return _UNKNOWN
