"""How this package writes: aside, then renamed, so that a name either holds a whole result or nothing.

A killed run leaves at most a hidden ``.NAME.tmp-…`` or ``.NAME.old-…`` beside the output. An output that exists is
refused; with ``overwrite`` it is replaced, but only where it is one of ours (it holds `marker`), so
that a mistyped path never deletes somebody's folder.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from geneformer_repro.errors import InputError

_PLAN_FILE = "plan.json"
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


@contextmanager
def new_directory(path: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an error."""
    path = Path(path)
    refuse_existing(path, overwrite=overwrite, marker=marker)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    aside.chmod(0o777 & ~_umask())
    try:
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
        yield aside
        aside.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{path} could not be written: the disk is full ({os.strerror(error.errno)}). Make room and give the "
                "same call again; what is finished is kept, and work that is done in parts goes on with it."
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def work_folder(out: Path) -> Path:
    """Return where unfinished work on `out` is kept: ``OUT.partial``."""
    return out.with_name(out.name + ".partial")


def refuse_other_work(out: Path, plan: Mapping[str, Any], *, what: str, overwrite: bool) -> None:
    """Raise unless the unfinished work on `out`, if there is any, was begun with this plan.

    Parameters
    ----------
    out
        The final output.
    plan
        What makes two pieces of work the same: settings and fingerprints of the inputs, as JSON can hold them.
    what
        "run" or "screen", for the message.
    overwrite
        Whether the user allowed unfinished work with another plan to be dropped.

    Raises
    ------
    FileExistsError
        The work folder was begun with another plan (names the first difference), or is not one of ours.
    """
    refuse_other_plan(work_folder(out), plan, what=what, overwrite=overwrite)


def refuse_other_plan(work: Path, plan: Mapping[str, Any], *, what: str, overwrite: bool) -> None:
    """Raise unless a work folder is absent, empty, or was begun with this plan; see `refuse_other_work`."""
    if not (work / _PLAN_FILE).exists():
        if work.exists() and (not work.is_dir() or any(work.iterdir())):
            raise FileExistsError(f"{work} is in the way and not unfinished work of this package; move it elsewhere.")
        return
    before = read_json(work / _PLAN_FILE)
    if before != plan and not overwrite:
        raise FileExistsError(
            f"{work} holds an unfinished {what} with other settings ({_first_difference(before, plan)}). "
            "Give the same settings to go on with it, or overwrite=True (--overwrite) to start anew."
        )


def begin_work(out: Path, plan: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Make the work folder of `out`, write its plan, return it; with `overwrite` drop what it holds."""
    work = work_folder(out)
    if overwrite:
        shutil.rmtree(work, ignore_errors=True)
    write_plan(work, plan)
    return work


def write_plan(work: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan into a work folder, which is made if it is absent."""
    work.mkdir(parents=True, exist_ok=True)
    with new_file(work / _PLAN_FILE, overwrite=True) as aside:
        write_json(aside, plan)


def is_begun(out: Path, plan: Mapping[str, Any]) -> bool:
    """Whether there is unfinished work on `out` with this plan."""
    path = work_folder(out) / _PLAN_FILE
    return path.exists() and read_json(path) == plan


def drop_work(out: Path) -> None:
    """Remove the unfinished work on `out`.

    Raises
    ------
    FileExistsError
        What is there is not unfinished work of this package.
    """
    refuse_other_work(out, {}, what="work", overwrite=True)
    shutil.rmtree(work_folder(out), ignore_errors=True)


def drop_if_not_begun(out: Path) -> None:
    """Remove the work folder of `out` if it holds no more than its plan, so that refused settings leave nothing."""
    work = work_folder(out)
    if {path.name for path in work.rglob("*") if path.is_file()} <= {_PLAN_FILE}:
        shutil.rmtree(work, ignore_errors=True)


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    there, here = before.get(key), now.get(key)
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        return f"{key}.{_first_difference(there, here)}"
    return f"{key}: {there!r} there, {here!r} now"


def move_into_place(aside: Path, path: Path) -> None:
    """Rename a folder into place; one that is in the way is moved aside first and deleted last."""
    if path.exists():
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON; NaN and objects that JSON cannot hold are errors."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


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
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}). The file is damaged; write it anew.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(content).__name__}.")
    return content


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
    for name, known in listed.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != known["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {known['bytes']}"
        if sha256(path) != known["sha256"]:
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
