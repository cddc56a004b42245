"""The parser of a command: options in groups, examples, and what can be told before anything is loaded.

An option says by its type what it names: something to read, obs columns, a number with a bound. So help puts it into
its group, and a path that is not there, a checkpoint in the place of cells, or a column that the cells lack, ends the
command in a third of a second, where importing torch takes several.
"""

import argparse
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from geneformer_repro.cli.artefacts import ANNDATA, CELLS, kind_of, labels_in, may_be_on_the_hub, obs_columns
from geneformer_repro.cli.terminal import broken, folded, say
from geneformer_repro.config import names_in, sections_of
from geneformer_repro.errors import InputError, did_you_mean, listed, nearest
from geneformer_repro.files import is_there

if TYPE_CHECKING:
    import numpy as np

IN, OUT, HOW, MACHINE = "what goes in", "what comes out", "how", "machine"
FAMILIES = ("data", "train", "ask", "look")
_OUT = {"--out", "--overwrite"}
_IN = {"--where", "--max-length", "--values", "--log2", "--gene-ids", "--genes-in"}
_MACHINE = {"--workers", "--ray", "--dtype", "--max-tokens", "--max-memory", "--quiet", "--help"}
_PATTERN = "*?["
_HARD_SPACE = "\N{NO-BREAK SPACE}"


class Reads:
    """Type of an option that names what is read.

    Parameters
    ----------
    kinds
        What of `artefacts` it may be; any where there is none.
    hub
        Whether it may be a repository on the hub.
    named
        Whether it may be written NAME=FILE.
    """

    def __init__(self, *kinds: str, hub: bool = False, named: bool = False) -> None:
        self.kinds, self.hub, self.named = kinds, hub, named

    def __call__(self, text: str) -> str:
        """Take it as it is."""
        return text

    def path(self, value: str) -> str:
        """Return the path in what was given."""
        _, is_named, path = value.partition("=")
        return path if self.named and is_named else value


class Column:
    """Type of an option that names obs columns of the cells."""

    def __call__(self, text: str) -> str:
        """Take it as it is."""
        return text


class AtLeast:
    """Type of an option that is a whole number not below a bound."""

    __name__ = "int"

    def __init__(self, bound: int) -> None:
        self.bound = bound

    def __call__(self, text: str) -> int:
        """Read it."""
        return int(text)


class Suggesting(argparse.ArgumentParser):
    """A parser that says what an unknown choice or option may have meant."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}. {did_you_mean(value, action.choices)}")

    def end_of_unknown(self, unknown: Sequence[str]) -> NoReturn:
        """End where arguments are left over."""
        options = [option for option in unknown if option.startswith("-")]
        meant = did_you_mean(options[0].partition("=")[0], self._option_string_actions) if options else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}. {meant}".rstrip(" "))


class Command(Suggesting):
    """A command's parser.

    Parameters
    ----------
    family
        One of `FAMILIES`, for the list of commands.
    says
        One line for that list.
    examples
        Whole command lines.
    then
        Of the parsed arguments the command that may come next, as words; None where none is known.
    looks
        Raises, of the parsed arguments and the small files that they name, if something cannot be asked.
    configures
        Of the parsed arguments the configuration that they fill, without torch; it becomes ``arguments.settings``.
    settings
        Module and class of the configuration that ``--config`` and ``--set`` fill, for help to name what it has.
    siblings
        All commands by name.
    """

    def __init__(
        self,
        *,
        family: str,
        says: str,
        examples: Sequence[str],
        then: Callable[[argparse.Namespace], list[str] | None] | None,
        configures: Callable[[argparse.Namespace], Any] | None,
        settings: tuple[str, str] | None,
        looks: Callable[[argparse.Namespace], None] | None,
        siblings: Mapping[str, "Command"],
        **options: Any,
    ) -> None:
        self._groups: dict[str, Any] = {}
        super().__init__(add_help=False, **options)
        self.family, self.says, self.examples, self.siblings = family, says, examples, siblings
        self._then, self._configures, self._settings, self._looks = then, configures, settings, looks
        self._groups = {name: self.add_argument_group(name) for name in (IN, OUT, HOW, MACHINE)}
        self.add_argument("-h", "--help", action="help", help="show this, and exit")

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an option to the group that it belongs to."""
        if names and not names[0].startswith("-"):
            options.setdefault("metavar", names[0].upper())
        action: argparse.Action = self._groups[_group_of(names, options)].add_argument(*names, **options)
        return action

    def format_usage(self) -> str:
        """Say what must be given; help says what may be."""
        parts = " ".join(part.replace(" ", _HARD_SPACE) for part in self._usage())
        said = textwrap.fill(
            f"usage: {parts}", _width(), subsequent_indent=" " * 7, break_long_words=False, break_on_hyphens=False
        )
        return f"{said.replace(_HARD_SPACE, ' ')}\n"

    def format_help(self) -> str:
        """Return the whole help: usage and examples, which are what most want, then options in groups."""
        formatter = self._get_formatter()
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        shown = [f"  {folded(shlex.split(example), _width(), at=2)}" for example in self.examples]
        said = (self.format_usage(), textwrap.fill(str(self.description), _width()), "", "for example:", *shown, "")
        return "\n".join((*said, formatter.format_help(), *self._named_settings())).rstrip() + "\n"

    def _named_settings(self) -> list[str]:
        """Name what --set and --config take, where the command does, a line a section."""
        if not self._settings:
            return []
        module, name = self._settings
        config_type = getattr(import_module(f"geneformer_repro.{module}"), name)
        sections = sections_of(config_type)
        widest = max(map(len, sections), default=0)
        names = [", ".join(field for field in names_in(config_type) if field not in sections)]
        names += [f"{f'{key}.':<{widest + 1}}  {', '.join(names_in(of.config_type))}" for key, of in sections.items()]
        lines = (broken(f"  {line}", _width()) for line in names)
        return ["settings, whose defaults and meanings are in the documentation:", *lines]

    def error(self, message: str) -> NoReturn:
        """End with usage, an example and the message."""
        self.print_usage(sys.stderr)
        example = folded(shlex.split(self.examples[0]), _width(), at=2)
        say(f"for example:\n  {example}\nerror: {message}\n({self.prog} --help lists all options)", stream=sys.stderr)
        self.exit(2)

    def _usage(self) -> list[str]:
        places, options = [], []
        for action in self._actions:
            many = " ..." if action.nargs in ("+", "*") else ""
            if not action.option_strings:
                places.append(f"{action.metavar}{many}" if action.required else f"[{action.metavar}{many}]")
            elif action.required:
                options.append(f"{action.option_strings[0]} {action.metavar or action.dest.upper()}{many}")
        return [self.prog, *places, *reversed(options), "[options]"]

    # Before anything is loaded

    def check(self, arguments: argparse.Namespace) -> None:
        """Raise if what was given cannot be right, as far as names and headers of files tell.

        Raises
        ------
        InputError
            A path is not there or not what is read, the cells have no such obs column, a number is below its bound, or
            a setting is unknown or out of its bounds.
        FileExistsError
            The output is there and may not be replaced.
        """
        for action, values in self._given(arguments, Reads):
            for value in values:
                self._require_readable(action, value, arguments)
        for action, numbers in self._given(arguments, AtLeast):
            for number in numbers:
                if number < action.type.bound:
                    raise InputError(f"{_called(action)} must be at least {action.type.bound}, found {number}.")
        self._require_columns(arguments)
        if self._configures:
            arguments.settings = self._configures(arguments)
        if getattr(arguments, "out", None) and not arguments.overwrite:
            import geneformer_repro.unfinished as unfinished

            unfinished.refuse(Path(arguments.out), overwrite=False)
        if self._looks:
            self._looks(arguments)

    def then(self, arguments: argparse.Namespace) -> list[str] | None:
        """Return the words of the command that may come next."""
        return self._then(arguments) if self._then else None

    def takes(self, kind: str) -> bool:
        """Whether the command is about such a thing."""
        places = [action for action in self._actions if not action.option_strings]
        return any(isinstance(action.type, Reads) and kind in action.type.kinds for action in places)

    def _given(self, arguments: argparse.Namespace, of: type) -> Iterator[tuple[Any, list[Any]]]:
        for action in self._actions:
            if isinstance(action.type, of) and (value := getattr(arguments, action.dest)) is not None:
                yield action, list(_flat(value))

    def _require_readable(self, action: Any, value: str, arguments: argparse.Namespace) -> None:
        name = action.type.path(value)
        path = Path(name)
        if not is_there(path):
            if any(mark in name for mark in _PATTERN) or (action.type.hub and may_be_on_the_hub(name)):
                return
            said = (f"{name}: no such file or folder.", nearest(path.name, _beside(path)), _expected(action))
            raise InputError(" ".join(filter(None, said)))
        kind = kind_of(path)
        if kind is None or not action.type.kinds or kind in action.type.kinds:
            return
        *others, last = action.type.kinds
        expected = f"{', '.join(others)} or {last}" if others else last
        raise InputError(
            f"{name}: is {kind}. {self.prog.split()[-1]} takes {expected} for {_called(action)}. "
            f"{self._way_out(name, kind, action, arguments)}".rstrip()
        )

    def _way_out(self, name: str, kind: str, action: Any, arguments: argparse.Namespace) -> str:
        """Say what to do with something of another kind."""
        for other in self._actions:
            at, reads = getattr(arguments, other.dest, None), other.type
            if not isinstance(reads, Reads) or not isinstance(at, str) or kind not in reads.kinds:
                continue
            both = other is not action and not other.option_strings and not action.option_strings
            if both and kind_of(Path(reads.path(at))) in action.type.kinds:
                return "The two are the wrong way round: exchange them."
        if kind == ANNDATA and CELLS in action.type.kinds:
            vocabulary = getattr(arguments, "checkpoint", None) or "VOCABULARY"
            return f"Make cells of it: geneformer-repro tokenize {name} --vocabulary {vocabulary} -o CELLS.tok"
        takers = [called for called, command in self.siblings.items() if command.takes(kind)]
        return f"Commands that take {kind}: {listed(takers)}." if takers else ""

    def _require_columns(self, arguments: argparse.Namespace) -> None:
        wanted = asked_where(getattr(arguments, "where", None) or ())
        cells = _cells_of(arguments)
        if cells is None or (columns := obs_columns(cells)) is None:
            return
        named = [(asked.column, "--where") for asked in wanted]
        if getattr(arguments, "cells", None):
            named += [(name, _called(action)) for action, names in self._given(arguments, Column) for name in names]
        for name, option in named:
            if name not in columns:
                raise InputError(
                    f"{option}: the dataset has no obs column {name!r}. {did_you_mean(name, columns)} Columns are "
                    "carried along by tokenize --obs."
                )
        for said, column, value in _asked_values(arguments, wanted):
            found = labels_in(cells, column) if column in columns else None
            if found is not None and value.strip() not in found:
                raise InputError(f"{said} {did_you_mean(value, sorted(found))}")


class Where(NamedTuple):
    """Values of an obs column: cells that have any of them are taken, or are left out."""

    column: str
    sign: str
    """``=`` or ``!=``."""
    values: list[str]

    def takes(self, has: "np.ndarray") -> "np.ndarray":
        """Say which cells are taken, of whether each has one of the values."""
        return has if self.sign == "=" else ~has


def asked_where(where: Iterable[str]) -> list[Where]:
    """Return what ``--where`` asks of each obs column.

    Raises
    ------
    InputError
        An argument is neither COLUMN=VALUE nor COLUMN!=VALUE.
    """
    wanted: dict[tuple[str, str], list[str]] = {}
    for text in where:
        column, _, value = text.partition("=")
        sign = "!=" if column.endswith("!") else "="
        column = column.removesuffix("!")
        if not (column and value):
            raise InputError(
                f"--where takes COLUMN=VALUE, such as cell_type='CD19+ B', or COLUMN!=VALUE; found {text!r}."
            )
        wanted.setdefault((column, sign), []).append(value)
    return [Where(column, sign, values) for (column, sign), values in wanted.items()]


def _cells_of(arguments: argparse.Namespace) -> Path | None:
    """Return the one thing that a command reads as cells, whatever its option is called."""
    given = [getattr(arguments, name, None) for name in ("cells", "data", "samples")]
    one = next((value for value in given if value), None)
    one = one[0] if isinstance(one, list) and len(one) == 1 else one
    return Path(one) if isinstance(one, str) else None


def _asked_values(arguments: argparse.Namespace, where: Sequence[Where]) -> Iterator[tuple[str, str, str]]:
    """Yield, of values that cells should have, what is said where none has it, the obs column and the value."""
    for column, sign, values in where:
        for value in values:
            yield f"--where {column}{sign}{value}: no cell has that {column}.", column, value
    if getattr(arguments, "test_groups", None) and arguments.group:
        for group in arguments.test_groups:
            yield f"--test-groups: no cell has {arguments.group} = {group!r}.", arguments.group, group
    of_states = getattr(arguments, "state_column", getattr(arguments, "state", None))
    if not isinstance(of_states, str) or not getattr(arguments, "start", None):
        return
    others = [] if arguments.target else [*filter(None, [arguments.goal]), *arguments.alternatives]
    for state in (arguments.start, *others):
        yield f"No cell has {of_states} = {state!r}.", of_states, state


def _width() -> int:
    return shutil.get_terminal_size().columns


def _group_of(names: Sequence[str], options: Mapping[str, Any]) -> str:
    if _OUT & set(names):
        return OUT
    if _MACHINE & set(names):
        return MACHINE
    is_read = not names[0].startswith("-") or isinstance(options.get("type"), Reads)
    return IN if is_read or _IN & set(names) else HOW


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _called(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar)


def _expected(action: argparse.Action) -> str:
    return f"{_called(action)} is: {action.help}."


def _beside(path: Path) -> list[str]:
    """Return the names beside a path that is not there."""
    try:
        return [other.name for other in path.parent.iterdir()]
    except OSError:
        return []
