"""Parts of pages that are made from the package itself, so that they cannot say anything else."""

import dataclasses
import inspect
import re
from collections.abc import Iterator

from sphinx.pycode import ModuleAnalyzer

import geneformer_repro as gf
from geneformer_repro.cli import _parser
from geneformer_repro.config import sections_of

SETTINGS = {
    "PretrainConfig": "`pretrain`",
    "FinetuneConfig": "`finetune`",
    "GeneFinetuneConfig": "`finetune --genes`",
    "TransferStudyConfig": "`finetune --source`",
    "PatientConfig": "`finetune-patients`",
    "CohortStudyConfig": "`transfer-study`",
    "ResponseConfig": "`response`",
    "ResponseStudyConfig": "`response-study`",
}
"""Configurations, and the command that takes each."""


def commands() -> str:
    """Every command with its help."""
    whole = _parser()
    of_commands = next(action for action in whole._actions if action.dest == "command")
    helps = [(name, parser.format_help()) for name, parser in of_commands.choices.items()]
    return "\n\n".join([_drawn(whole.format_help()), *(f"## {name}\n\n{_drawn(told)}" for name, told in helps)])


def _drawn(told: str) -> str:
    return f"```text\n{told.strip()}\n```"


def settings() -> str:
    """Every configuration as tables: setting, default, meaning."""
    return "\n\n".join(_of_config(getattr(gf, name), command) for name, command in SETTINGS.items())


def _of_config(config_type: type, command: str) -> str:
    sections = sections_of(config_type)
    own = {field.name for field in dataclasses.fields(config_type)} - set(sections)
    tables = [_table(config_type, own, "")]
    for name, section in sections.items():
        inside = {field.name for field in dataclasses.fields(section.config_type)}
        tables.append(f"### `[{name}]`\n\n{_table(section.config_type, inside, f'{name}.')}")
    return f"## {config_type.__name__}: {command}\n\n" + "\n\n".join(tables)


def _table(config_type: type, names: set[str], prefix: str) -> str:
    meanings = _meanings(config_type)
    rows = [
        f"| `{prefix}{field.name}` | {_default(field)} | {meanings.get(field.name, '')} |"
        for field in dataclasses.fields(config_type)
        if field.name in names
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _default(field: dataclasses.Field) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else ""
    return "" if default in ("", None, (), {}) else f"`{default!r}`"


def _meanings(config_type: type) -> dict[str, str]:
    """What stands below each field, in the class or the one it has it from."""
    found: dict[str, str] = {}
    for owner in reversed(config_type.__mro__):
        if dataclasses.is_dataclass(owner):
            found |= dict(_below_fields(owner))
    return found


def _below_fields(owner: type) -> Iterator[tuple[str, str]]:
    documented = ModuleAnalyzer.for_module(inspect.getmodule(owner).__name__).find_attr_docs()
    for (of, name), lines in documented.items():
        if of == owner.__name__:
            text = re.sub(r"``?([^`]+)``?", r"`\1`", " ".join(line.strip() for line in lines if line.strip()))
            yield name, text.replace("|", "\\|")
