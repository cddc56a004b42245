"""Unfinished work on an output, ``OUT.partial``, and the one rule for it.

1. An output that exists is refused; with ``overwrite`` it is replaced, but only once its successor is complete.
2. Unfinished work with the same plan goes on, with ``overwrite`` too: a job that is queued again with the same words
   must not begin anew for ever.
3. Unfinished work with another plan is refused, and the first difference named; with ``overwrite`` it is dropped.
4. What is not ours, or is a link, is never touched.
5. One call at a time: it holds a lock, that of a dead process holds nobody, and a second call leaves with one line.

A plan is what makes two calls the same: the step and its version, settings, and every input by content. Folders are
dropped by renaming them first, so that a kill leaves work whole or not at all (and perhaps a hidden ``.NAME.old-…``).
"""

import fcntl
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geneformer_repro.errors import InputError
from geneformer_repro.files import (
    move_into_place,
    new_file,
    read_json,
    refuse_existing,
    sha256,
    translated,
    write_json,
)

logger = logging.getLogger(__name__)

_PLAN, _LOCK, _DELIVERED = "plan.json", "lock", "delivered.json"
_PATIENCE_SECONDS = 5.0
"""How long a call waits for the lock: a process that was killed, or is clearing up, needs a moment."""


def work_folder(out: Path) -> Path:
    """Return where unfinished work on `out` is kept: ``OUT.partial``."""
    if not out.name:
        raise InputError(f"{str(out)!r} is no name for an output. Give a file or folder that is to be written.")
    return out.with_name(out.name + ".partial")


class Unfinished:
    """Work under way; made by `unfinished` or `held`.

    Attributes
    ----------
    folder
        Where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_delivered(self, out: Path) -> bool:
        """Whether an earlier call with this plan was cut off after its result had come to `out`."""
        return _has_delivered(self.folder, out)

    @contextmanager
    def result(self, out: Path) -> Iterator[Path]:
        """Yield a name in the work folder; what stands there at the end replaces `out`."""
        aside = self.folder / f"result{out.suffix}"
        remove(aside)
        yield aside
        self.deliver(aside, out)

    def deliver(self, aside: Path, out: Path) -> None:
        """Rename a complete result to `out`; one that is in the way is deleted last."""
        with new_file(self.folder / _DELIVERED, overwrite=True) as note:
            write_json(note, _identity(aside))
        with translated(out):
            move_into_place(aside, out)


@contextmanager
def unfinished(
    out: Path,
    plan: Mapping[str, Any],
    *,
    what: str,
    marker: str | None = None,
    overwrite: bool = False,
    must_exist: bool = False,
) -> Iterator[Unfinished]:
    """Work on an output in ``OUT.partial``, which survives a crash, and is dropped when the block ends without error.

    Parameters
    ----------
    out
        The output.
    plan
        What makes two pieces of work the same, as JSON can hold it (anything else by its text).
    what
        "run" or "screen", for messages.
    marker
        As for `files.refuse_existing`.
    overwrite
        Replace `out`; drop work with another plan.
    must_exist
        Raise if there is no unfinished work.

    Raises
    ------
    FileExistsError
        `out` exists; or what is in ``OUT.partial`` has another plan, is no work of ours, or is being worked on.
    InputError
        There is nothing to go on with, or the disk is full.
    """
    refuse(out, overwrite=overwrite, marker=marker)
    folder = work_folder(out)
    if must_exist and not folder.exists():
        raise InputError(
            f"{folder}: no such folder, so there is no unfinished {what} to go on with. Leave out --resume."
        )
    with held(folder, plan, what=what, overwrite=overwrite) as work:
        refuse_existing(out, overwrite=overwrite or work.has_delivered(out), marker=marker)
        yield work
        drop(folder)


def refuse(out: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Raise before the work if `out` may not be written; see `files.refuse_existing`.

    An output that unfinished work has just delivered is let pass, for that work to clear up.
    """
    refuse_existing(out, overwrite=overwrite or _has_delivered(work_folder(out), out), marker=marker)


@contextmanager
def held(folder: Path, plan: Mapping[str, Any], *, what: str, overwrite: bool = False) -> Iterator[Unfinished]:
    """Hold a work folder, begun with this plan or made anew; it stays when the block ends, unless nothing was done.

    Parameters and errors are those of `unfinished`.
    """
    plan = json.loads(json.dumps(plan, default=str))
    lock = _lock(folder, lambda: _refuse_or_drop(folder, plan, what=what, overwrite=overwrite), what)
    try:
        if not (folder / _PLAN).exists():
            with new_file(folder / _PLAN) as aside:
                write_json(aside, plan)
        with translated(folder):
            yield Unfinished(folder)
    except (InputError, FileExistsError):
        if not _holds_work(folder):
            drop(folder)
        raise
    finally:
        os.close(lock)


def refuse_other(out: Path, plan: Mapping[str, Any], *, what: str, overwrite: bool) -> None:
    """Raise, before costly preparations, where `unfinished` would because of another plan; nothing is changed."""
    _refuse_other(work_folder(out), json.loads(json.dumps(plan, default=str)), what=what, overwrite=overwrite)


def read_plan(folder: Path) -> dict[str, Any]:
    """Return the plan of a work folder."""
    return read_json(folder / _PLAN)


def drop(folder: Path) -> None:
    """Remove a folder such that a kill leaves it whole or gone."""
    if not folder.exists():
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    with suppress(FileNotFoundError):  # another call was first
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Parts


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a part of the work, synced, with its digest beside it, so that `is_whole` can tell damage later."""
    with new_file(path, overwrite=True) as aside:
        write(aside)
        with new_file(_digest_file(path), overwrite=True) as note:
            note.write_text(sha256(aside) + "\n", encoding="ascii")


def is_whole(path: Path) -> bool:
    """Whether a part is there as `keep` wrote it; what is not is removed, to be made again."""
    note = _digest_file(path)
    if path.exists() and note.exists() and note.read_text(encoding="ascii", errors="replace").strip() == sha256(path):
        return True
    if path.exists():
        logger.warning("%s is damaged, and made again.", path)
        path.unlink()
    note.unlink(missing_ok=True)
    return False


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


# The lock, and whose the folder is


def _lock(folder: Path, prepare: Callable[[], None], what: str) -> int:
    """Make the folder, and hold its lock as long as the number that is returned is open.

    `prepare` may drop the folder, so it is looked whether the lock is still that of the folder.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            number = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another call has just dropped the folder
            continue
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(number, 200, 0).decode(errors="replace")
            os.close(number)
            if time.monotonic() > deadline:
                raise FileExistsError(
                    f"{folder}: another call is working on this {what} ({holder or 'just begun'}). Wait until it has "
                    "ended, or choose another output."
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            logger.warning(
                "%s: this file system has no locks (%s); never run two of the same command at once.", folder, error
            )
        if _is_that_of(number, folder):
            prepare()
            if _is_that_of(number, folder):
                os.ftruncate(number, 0)
                os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return number
        os.close(number)


def _is_that_of(number: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), (folder / _LOCK).stat())
    except FileNotFoundError:
        return False


def _refuse_or_drop(folder: Path, plan: Mapping[str, Any], *, what: str, overwrite: bool) -> None:
    _refuse_other(folder, plan, what=what, overwrite=overwrite)
    if (folder / _PLAN).exists() and read_json(folder / _PLAN) != plan:
        drop(folder)


def _refuse_other(folder: Path, plan: Mapping[str, Any], *, what: str, overwrite: bool) -> None:
    _refuse_foreign(folder)
    before = read_json(folder / _PLAN) if (folder / _PLAN).exists() else plan
    if before != plan and not overwrite:
        raise FileExistsError(
            f"{folder} holds an unfinished {what} with other settings ({_first_difference(before, plan)}). "
            "Give the same settings to go on with it, or overwrite=True (--overwrite) to start anew."
        )


def _refuse_foreign(folder: Path) -> None:
    """Raise where something that is not ours stands in the place of the work folder.

    Without a plan it may hold what a call that was cut off before had time to make: the lock, and half a plan.
    """
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link, so not unfinished work of this package; move it elsewhere.")
    if (folder / _PLAN).exists():
        return
    try:
        inside = {path.name for path in folder.iterdir() if not path.name.startswith(f".{Path(_PLAN).stem}.tmp-")}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        inside = {folder.name}
    if not inside <= {_LOCK} and not (folder / _PLAN).exists():  # which another call may just have written
        raise FileExistsError(f"{folder} is in the way and not unfinished work of this package; move it elsewhere.")


def _holds_work(folder: Path) -> bool:
    """Whether there is more than the plan, so that refused settings leave nothing."""
    return any(path.is_file() and path.name not in (_PLAN, _LOCK) for path in folder.rglob("*"))


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    there, here = before.get(key), now.get(key)
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        return f"{key}.{_first_difference(there, here)}"
    return f"{key}: {_shown(there)} there, {_shown(here)} now"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _has_delivered(folder: Path, out: Path) -> bool:
    try:
        return read_json(folder / _DELIVERED) == _identity(out)
    except (InputError, OSError):
        return False


def _identity(path: Path) -> dict[str, int]:
    """Return what stays of a file or folder when it is renamed."""
    state = path.stat()
    return {"device": state.st_dev, "inode": state.st_ino, "bytes": state.st_size if path.is_file() else 0}
