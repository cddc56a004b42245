"""Long work on one output, shared by the processes of a run, from which a later call goes on.

The rule is that of `unfinished`; here the first process looks, writes and holds the lock, and the others believe it, as
lists of a shared file system can differ between machines. What the parts are must follow from the inputs alone, never
from who does them: then one process, two, and a call that was killed and given again end with the same result.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import geneformer_repro.processes as processes
import geneformer_repro.unfinished as unfinished


class Work:
    """Work under way on every process of a run; made by `working_on`.

    Attributes
    ----------
    out
        The output.
    folder
        Where unfinished work is kept.
    is_delivered
        Whether an earlier call with this plan was cut off when its result stood in `out` already.
    """

    def __init__(self, out: Path, held: unfinished.Unfinished | None, *, is_delivered: bool) -> None:
        self.out, self.folder, self.is_delivered = out, unfinished.work_folder(out), is_delivered
        self._held = held

    def result(self) -> AbstractContextManager[Path]:
        """Yield, on the first process, a name for the result; what stands there at the end replaces the output."""
        assert self._held is not None, "the first process writes"
        return self._held.result(self.out)

    def deliver(self, aside: Path) -> None:
        """Rename, on the first process, a complete result to the output."""
        assert self._held is not None, "the first process writes"
        self._held.deliver(aside, self.out)


@contextmanager
def working_on(
    out: str | Path,
    plan: Mapping[str, Any],
    *,
    what: str,
    marker: str | None = None,
    overwrite: bool = False,
    must_exist: bool = False,
) -> Iterator[Work]:
    """Share work on an output; every process of a run enters this, and whoever fails tells the others.

    Parameters and errors are those of `unfinished.unfinished`.
    """
    out = Path(out)
    with processes.together(), ExitStack() as stack:
        held: list[unfinished.Unfinished] = []

        def begin() -> bool:
            options: dict[str, Any] = {"marker": marker, "overwrite": overwrite, "must_exist": must_exist}
            held.append(stack.enter_context(unfinished.unfinished(out, plan, what=what, **options)))
            return held[0].has_delivered(out)

        is_delivered = processes.agreed(begin)
        yield Work(out, held[0] if held else None, is_delivered=is_delivered)
        processes.wait()
        stack.close()  # which drops the folder, on the first process
        processes.wait()


class Parts:
    """The parts of some work, a file each.

    Parameters
    ----------
    work
        Whose parts.
    n_parts
        How many there are.
    suffix
        Of a part's file.
    """

    def __init__(self, work: Work, n_parts: int, *, suffix: str) -> None:
        self.paths = [work.folder / f"part-{i:06d}{suffix}" for i in range(n_parts)]
        self.missing = processes.agreed(
            lambda: [i for i, path in enumerate(self.paths) if not unfinished.is_whole(path)]
        )
        """Parts that no earlier call has written, or that are damaged; the same on every process."""

    @property
    def mine(self) -> list[int]:
        """The missing parts that this process is to do."""
        return self.missing[processes.share()]

    def keep(self, i: int, write: Callable[[Path], object]) -> None:
        """Write a part; raise if another process of the run has failed."""
        unfinished.keep(self.paths[i], write)
        processes.require_others()
