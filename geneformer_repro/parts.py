"""Long work on one output, cut into parts that several processes share and that a later call goes on with.

Each part is written aside and renamed, so that it is there whole or not at all. What the parts are must follow from the
inputs alone, never from who does them: then one process, two, and a call that was killed and given again end with the
same result.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geneformer_repro import processes
from geneformer_repro.files import begin_work, refuse_other_work, work_folder


class Parts:
    """Unfinished parts of an output, ``OUT.partial``; every process of a run makes one and does its share.

    Parameters
    ----------
    out
        The result.
    plan
        What makes two pieces of work the same, as JSON can hold it.
    n_parts
        How many parts there are.
    suffix
        Of a part's file.
    what
        What the work is called in messages: "embedding", "screen".
    overwrite
        Drop unfinished work.

    Raises
    ------
    FileExistsError
        There is unfinished work with another plan; names the first difference.
    """

    def __init__(
        self, out: Path, plan: Mapping[str, Any], n_parts: int, *, suffix: str, what: str, overwrite: bool
    ) -> None:
        refuse_other_work(out, plan, what=what, overwrite=overwrite)
        processes.wait()
        if processes.is_first():
            begin_work(out, plan, overwrite=overwrite)
        processes.wait()
        self.out, self.paths = out, [work_folder(out) / f"part-{i:06d}{suffix}" for i in range(n_parts)]
        self.missing = [i for i, path in enumerate(self.paths) if not path.exists()]
        """Parts that no earlier call has written; the same on every process."""
        processes.wait()

    @property
    def mine(self) -> list[int]:
        """The missing parts that this process is to do."""
        return self.missing[processes.share()]

    @property
    def untouched(self) -> bool:
        """Whether no earlier call has written any."""
        return len(self.missing) == len(self.paths)

    def drop(self) -> None:
        """Remove them, once the result is there."""
        shutil.rmtree(work_folder(self.out))
