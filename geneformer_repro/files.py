"""How this package writes: aside, synced, then renamed, so that a name either holds a whole result or nothing.

A killed run leaves at most a hidden ``.NAME.tmp-…`` or ``.NAME.old-…`` beside the output. An output that exists is
refused; with ``overwrite`` it is replaced, but only where it is one of ours (it holds `marker`), so
that a mistyped path never deletes somebody's folder.
"""

import codecs
import errno
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from geneformer_repro.errors import DataFormatError, InputError

if TYPE_CHECKING:
    import pandas as pd

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = re.compile(
    rf"(os error|errno =|\[Errno) ({'|'.join(map(str, _FULL))})\b|No space left|quota exceeded|File too large"
    r"|PytorchStreamWriter failed|file write failed|unexpected pos",
    re.IGNORECASE,
)
"""How safetensors, HDF5 and torch say that there is no room; only their text tells."""
_GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"BAM\x01": "a BAM file of reads",
    b"MATLAB 5.0": "a MATLAB file",
}
_POINTERS = {
    b"version https://git-lfs": ("a pointer of Git LFS, not the file", "Fetch the file: git lfs pull."),
    b"/annex/objects": ("a pointer of git-annex, not the file", "Fetch the file: git annex get."),
    b"../.git/annex": ("a pointer of git-annex, not the file", "Fetch the file: git annex get."),
}
_UNPACK = {"bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd"}
_TAR_AT, _TAR = 257, b"ustar"
_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_UNPACKED_AT_ONCE, _UNSUSPICIOUS, _MOST_TIMES, _MOST_TEXT = 1 << 22, 1 << 26, 200, 1 << 31
"""Bytes: unpacked at a time; up to which no packed text is a bomb; so many times the packed size; at all."""
_LONGEST_AFFIX = len(".partial") + len(".tmp-00000000") + 1
_RECORDED_PACKAGES = (
    "geneformer-repro",
    "torch",
    "transformers",
    "datasets",
    "anndata",
    "scanpy",
    "numpy",
    "scikit-learn",
)


def refuse_existing(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Raise before the work, not after it, if `path` may not be written.

    Parameters
    ----------
    path
        The output.
    overwrite
        Whether the user allowed it to be replaced.
    marker
        For a directory: the file without which it is not one of ours and is never replaced.

    Raises
    ------
    FileExistsError
        The output is there and may not be replaced.
    InputError
        The folder that should hold the output cannot be made or written to.
    """
    _require_possible(path)
    if path.exists():
        if not overwrite:
            raise FileExistsError(
                f"{path} already exists. Choose another output, or allow it to be replaced: overwrite=True "
                f"(--overwrite)."
            )
        if path.is_dir() and marker and any(path.iterdir()) and not (path / marker).exists():
            raise FileExistsError(
                f"{path} is a folder without {marker}, so not an earlier result of this step; it is not replaced. "
                f"Choose another output."
            )
        if path.is_dir() != bool(marker):
            raise FileExistsError(
                f"{path} is a {'folder' if path.is_dir() else 'file'}, but this step writes a "
                f"{'folder' if marker else 'file'}; it is not replaced."
            )
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: the folder {path.parent} cannot be made ({error.strerror}).") from error


def _require_possible(path: Path) -> None:
    """Raise if no file could ever stand under this name."""
    if not path.name:
        raise InputError(f"{str(path)!r} is no name for an output. Give a file or folder that is to be written.")
    longest = os.pathconf(next((folder for folder in path.parents if folder.is_dir()), "."), "PC_NAME_MAX")
    for name, most in [(path.name, longest - _LONGEST_AFFIX), *((name, longest) for name in path.parts[:-1])]:
        if len(os.fsencode(name)) > most:
            raise InputError(
                f"{path}: a name of {len(os.fsencode(name))} bytes is too long; at most {most} leave room for the "
                "temporary names beside it. Choose a shorter one."
            )
    if path.is_symlink() and not path.exists():
        raise FileExistsError(
            f"{path} is a link that leads nowhere ({path.readlink()}). Remove it, or choose another output."
        )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what libraries raise when the disk is full into one line that names the file.

    Raises
    ------
    InputError
        The disk or a quota is full, or the file is larger than allowed.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        name = getattr(error, "filename", None) or path
        raise InputError(
            f"{name} could not be written: the disk is full ({' '.join(str(error).split())[:200]}). Make room and give "
            "the same call again; what is finished is kept, and work that is done in parts goes on with it."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in _FULL or _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def new_directory(path: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an error."""
    path = Path(path)
    refuse_existing(path, overwrite=overwrite, marker=marker)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    aside.chmod(0o777 & ~_umask())
    try:
        with translated(path):
            yield aside
            move_into_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a name beside `path` that becomes `path` when the block ends without an error.

    Raises
    ------
    InputError
        The disk is full; an earlier `path` is still there.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    aside = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        with translated(path):
            yield aside
            sync(aside)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file on the disk before it gets its name: after a power cut a name never holds half of it."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def move_into_place(aside: Path, path: Path) -> None:
    """Rename a file or folder into place; a folder that is in the way is moved aside first and deleted last."""
    if aside.is_file():
        sync(aside)
        aside.replace(path)
    elif path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
        path.rename(old / path.name)
        aside.rename(path)
        shutil.rmtree(old)
    else:
        aside.rename(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_unpacked(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a file for reading, through gzip if that is what it is, whatever its name says."""
    with path.open("rb") as file:
        is_packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if is_packed else path.open("rb")


FIRST_BYTES = 1024
"""So many tell what a file is."""


def mudata_of(path: Path) -> Path | None:
    """Return the ``.h5mu`` file of a path such as ``cells.h5mu/rna``, which names a modality in it, as mudata's do."""
    return path.parent if path.parent.suffix.lower() == ".h5mu" and path.parent.is_file() else None


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder, or a ``.h5mu`` file of such a modality."""
    return path.exists() or mudata_of(path) is not None


class Foreign(NamedTuple):
    """What a file is instead of what was expected, and what to do, each for a message."""

    what: str
    way_out: str


def foreign_content(begin: bytes, name: str) -> Foreign | None:
    """Say what a file is by its first kilobyte, where that is something people take for their data by mistake."""
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not begin:
        return Foreign("an empty file", "Copy or download it again.")
    if begin[_TAR_AT:].startswith(_TAR) or (name.lower().endswith(_TARS) and begin.startswith((_GZIP, *_PACKED))):
        return Foreign("a tar archive", f"Unpack it, and name what is in it: tar -xf {shlex.quote(name)}.")
    if begin.startswith(_GZIP):
        return Foreign("a file packed by gzip", f"Unpack it: gunzip -k {shlex.quote(name)}.")
    pointer = next((text for start, text in _POINTERS.items() if begin.startswith(start)), None)
    if pointer:
        return Foreign(*pointer)
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return Foreign("a web page", "The download gave a page in place of the file: use the link of the file itself.")
    if text.startswith((b'{"', b"{\n", b"{ ", b'[{"')):
        return Foreign("JSON", "If a server answered a download so, it says why; else write counts as an .h5ad.")
    what = next((what for start, what in _PACKED.items() if begin.startswith(start)), None)
    if what is None:
        return None
    if packer := next((packer for packer in _UNPACK if packer in what), None):
        return Foreign(f"a file {what}", f"Unpack it: {_UNPACK[packer]} {shlex.quote(name)}.")
    if what.startswith("a zip"):
        return Foreign(what, "Unpack it, or write its counts with AnnData.write_h5ad.")
    return Foreign(what, "Write what is wanted of it as the file that is expected.")


def read_text(path: str | Path) -> str:
    """Return the text of a table: UTF-8, or what its byte-order mark says; gzip is told by its first bytes.

    Raises
    ------
    InputError
        There is no such file, or it may not be read.
    DataFormatError
        It is no text in UTF-8, an archive or a workbook, damaged, or becomes absurdly large when it is unpacked.
    """
    path = Path(path)
    try:
        with open_unpacked(path) as file:
            content = _limited(path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFormatError(f"{path}: the file is damaged or truncated ({error}).") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if packed := next((what for begin, what in _PACKED.items() if content.startswith(begin)), None):
        raise DataFormatError(f"{path}: expected a table of text, found {packed}; save it as a TSV or CSV in UTF-8.")
    if content and (foreign := foreign_content(content[:FIRST_BYTES], path.name)):
        raise DataFormatError(f"{path}: expected a table of text, found {foreign.what}. {foreign.way_out}")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataFormatError(
            f"{path}: line {line} is not in UTF-8 (byte {content[error.start]:#04x}); save the table in UTF-8."
        ) from error
    if "\0" in text:
        raise DataFormatError(f"{path}: expected a table of text, found NUL characters; save it as text in UTF-8.")
    return text


def _limited(path: Path, file: gzip.GzipFile | io.BufferedReader) -> bytes:
    """Read to the end, or until it is certain that nobody's table is so large."""
    size, content = path.stat().st_size, io.BytesIO()
    while block := file.read(_UNPACKED_AT_ONCE):
        content.write(block)
        n = content.tell()
        if n > _MOST_TEXT or n > max(_UNSUSPICIOUS, _MOST_TIMES * size):
            raise DataFormatError(
                f"{path}: its {size:,} bytes become more than {n // 2**20:,} MB when they are unpacked; it is not read "
                "further. Expected a table of text."
            )
    return content.getvalue()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON; NaN and objects that JSON cannot hold are errors."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


VECTOR_ENDINGS = (".h5ad", ".zarr")
"""Of files that hold vectors."""


def require_ending(path: Path, endings: Sequence[str], what: str) -> None:
    """Raise unless a name ends as what is written to it does."""
    if path.suffix not in endings:
        raise InputError(f"{path}: {what} are written as {' or '.join(endings)}. Give a name that ends so.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        The file is missing, damaged, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Expected it to be written by geneformer_repro.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # which comes of thousands of brackets in one another
        raise InputError(f"{path}: not readable as JSON ({error}). The file is damaged; write it anew.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(content).__name__}.")
    return content


_RUN_BY_SPREADSHEETS = re.compile(r"'*[=+\-@\t\r]")
_FIRST_OF_RUN = frozenset("'=+-@\t\r")
_first = itemgetter(slice(1))
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")


def write_table(table: "pd.DataFrame", path: Path, *, index: bool = True, header: bool = True) -> None:
    """Write a table with tabs between its columns, of which a spreadsheet runs nothing.

    Names come from data of others, and a spreadsheet runs what begins with ``=``, ``+``, ``-``, ``@``, a tab or a
    carriage return. Such text gets an apostrophe before it, as a spreadsheet writes text itself, also in names of
    columns and rows; numbers do not, written as text or not. `read_table` takes it away again.
    """
    lines = None if index else _plain_lines(table, header=header)
    if lines is not None:
        path.write_text(lines, encoding="utf-8", newline="")
        return
    import pandas as pd  # only tables need it, and it takes longer than a command may to start

    inert, texts = table.copy(deep=False), []
    for i, kind in enumerate(table.dtypes):
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind)):
            texts.append(_inert(table.iloc[:, i]))
            inert.isetitem(i, pd.array(texts[-1], dtype=object))
    inert.columns = pd.Index(_inert(table.columns), dtype=object)
    if index:
        names = table.index
        if not pd.api.types.is_numeric_dtype(names.dtype):
            texts.append(_inert(names))
            names = pd.Index(texts[-1], dtype=object)
        inert.index = names.rename(_inert([table.index.name])[0])
    returns = any("\r" in "".join(map(str, column)) for column in texts)
    quoting: Literal[0, 1] = 1 if returns else 0  # csv.QUOTE_ALL, else a row would end there
    inert.to_csv(path, sep="\t", index=index, header=header, quoting=quoting)


_SMALL_TABLE = 1 << 24
"""Characters of a table that is split into Python texts at once, with about 100 bytes of memory for each field."""


def _plain_lines(table: "pd.DataFrame", *, header: bool) -> str | None:
    """Return texts and whole numbers as pandas would write them, in a tenth of its time; None if any needs quotes."""
    import pandas as pd

    columns: list[list[str]] = []
    for i, name in enumerate(table.columns):
        column = table.iloc[:, i]
        values = column.tolist()
        if pd.api.types.is_integer_dtype(column.dtype):
            values = ["" if value is pd.NA else str(value) for value in values]
        elif set(map(type, values)) <= {str}:
            values = _inert(values)
        else:
            return None
        columns.append([*_inert([name]), *values] if header else values)
    if len(columns) < 2 or not all(isinstance(name, str) for name in table.columns):
        return None
    n_lines = len(columns[0])
    lines = "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n" * (n_lines > 0)
    is_plain = '"' not in lines and "\r" not in lines and lines.count("\n") == n_lines
    return lines if is_plain and lines.count("\t") == n_lines * (len(columns) - 1) else None


def _inert(values: Iterable[Any]) -> list[Any]:
    """Put an apostrophe before texts that are run; most are told by their first character."""
    every = list(values)
    try:
        first = set(map(_first, every))
    except TypeError:  # some are no texts
        first = {text[:1] for text in every if isinstance(text, str)}
    if _FIRST_OF_RUN.isdisjoint(first):
        return every
    return [
        f"'{text}" if isinstance(text, str) and text[:1] in _FIRST_OF_RUN and _is_run(text) else text for text in every
    ]


def _is_run(text: str) -> bool:
    return _RUN_BY_SPREADSHEETS.match(text) is not None and _NUMBER.match(text) is None


def read_columns(path: Path) -> dict[str, list[str]]:
    """Read a table with tabs between its columns as `read_table`, into lists; without pandas if it can be.

    Raises
    ------
    InputError, ValueError
        As `read_table`.
    """
    text = read_text(path)
    columns = None if "'" in text else _plain_columns(text, "\t")
    if columns is not None:
        return columns
    table = read_table(path)
    return {str(name): table[name].tolist() for name in table.columns}


def read_table(path: Path, *, sep: str | None = "\t") -> "pd.DataFrame":
    """Read a table as text, as `write_table` was given it.

    Parameters
    ----------
    path
        A file that `read_text` reads.
    sep
        What is between the columns; None: tab, comma or semicolon, whichever the first line has most of, or says as
        Excel does (``sep=;``).

    Raises
    ------
    InputError
        As `read_text`.
    ValueError
        It is no table; as pandas.
    """
    import pandas as pd

    text = read_text(path)
    if sep is None:
        first, _, rest = text.partition("\n")
        says = first.lower().startswith("sep=")
        sep, text = (first[4:5], rest) if says else (max("\t,;", key=first.count), text)
    columns = _plain_columns(text, sep)
    if columns is None:
        table = pd.read_csv(io.StringIO(text), sep=sep, dtype=str, keep_default_na=False)
    else:
        table = pd.DataFrame({name: pd.array(values, dtype=object) for name, values in columns.items()})
    table.columns = pd.Index([_as_given(str(name)) for name in table.columns])
    return table.map(_as_given) if "'" in text else table


def _plain_columns(text: str, sep: str) -> dict[str, list[str]] | None:
    """Read a table in which nothing is quoted and all lines have as many fields, as pandas would, in half its time."""
    if len(text) > _SMALL_TABLE or len(sep) != 1:
        return None
    header, *lines = text.removesuffix("\n").split("\n")
    names = header.split(sep)
    rows = [line.split(sep) for line in lines]
    is_plain = '"' not in text and "\r" not in text and "" not in names and "" not in lines
    if not (is_plain and rows and len(set(names)) == len(names) and set(map(len, rows)) == {len(names)}):
        return None
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _as_given(text: str) -> str:
    return text[1:] if text.startswith("'") and _is_run(text[1:]) else text


def misfit(value: Any, form: Any, name: str = "") -> str | None:
    """Say where a value from JSON has not the form that is expected; None if it has.

    Parameters
    ----------
    value
        What was read.
    form
        A type (`float` takes whole numbers too, `int` no truth values); a list of one form, of which there may be any
        number; a dictionary of forms, in which a key that ends with "?" may be absent and others are not looked at; or
        a dictionary of the one key `str`, for any keys.
    name
        What the value is called.
    """
    if isinstance(form, list):
        if not isinstance(value, list):
            return _misfit(name, "a list", value)
        return next((wrong for i, item in enumerate(value) if (wrong := misfit(item, form[0], f"{name}[{i}]"))), None)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return _misfit(name, "an object", value)
        if str in form:
            fields = dict.fromkeys(value, (form[str], False))
        else:
            fields = {key.removesuffix("?"): (of_key, key.endswith("?")) for key, of_key in form.items()}
        for key, (of_key, may_lack) in fields.items():
            if key not in value and not may_lack:
                return f"{key!r} is missing{f' in {name}' if name else ''}"
            if key in value and (wrong := misfit(value[key], of_key, f"{name}.{key}" if name else str(key))):
                return wrong
        return None
    taken = (int, float) if form is float else (form,)
    if not isinstance(value, taken) or (isinstance(value, bool) and form is not bool):
        return _misfit(
            name, {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[form], value
        )
    return None


def _misfit(name: str, expected: str, value: Any) -> str:
    return f"{name} should be {expected}, found {repr(value)[:60]}"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """List all files of a folder with size and digest, so that `damage` can tell whether they are still so."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / _MANIFEST
    }
    write_json(folder / _MANIFEST, {"format": "geneformer_repro/manifest/1", "files": files})


def damage(folder: Path) -> str | None:
    """Say what is wrong with a folder that `write_manifest` described; None if nothing is."""
    try:
        listed = read_json(folder / _MANIFEST)["files"]
    except (InputError, KeyError):
        return f"no readable {_MANIFEST}"
    for name, recorded in listed.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != recorded["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {recorded['bytes']}"
        if sha256(path) != recorded["sha256"]:
            return f"{name} is not what was written"
    return None


def provenance(step: str, *, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Say what made a result: the step, its configuration, its inputs' fingerprints, the versions, the time."""
    return {
        "format": "geneformer_repro/provenance/1",
        "step": step,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "inputs": dict(inputs),
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in _RECORDED_PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
