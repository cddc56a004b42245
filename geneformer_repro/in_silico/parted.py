"""Long tables made part by part, shared by processes; a call that was cut off goes on.

Work is cut into parts of rows, by the rows alone; each part's table is one file until the end, when they become the row
groups of one. So memory does not grow with the number of rows, several processes share the parts, and work that was cut
off goes on where it stopped and ends with the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import geneformer_repro.processes as processes
import geneformer_repro.unfinished as unfinished
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.block_tables import BlockTable
from geneformer_repro.progress import Bar, progress
from geneformer_repro.reading import MAX_TOKENS
from geneformer_repro.work import Parts, Work, working_on

TableT = TypeVar("TableT", bound=BlockTable)
FEW_PARTS = 16
"""Fewer parts are merged without a progress bar."""
LONG_SECONDS = 600
"""Above this, the forecast says how long fewer cells would take."""
CPU_TOKENS = 4096
"""Tokens of a batch on a CPU: a tenth faster than four times as many (V1-10M, 1 MB of cache a core)."""


class Parted(ABC, Generic[TableT]):
    """Rows of which a long table is made, cut into parts."""

    kind: ClassVar[type[BlockTable]]
    """What is made."""
    verb: ClassVar[str]
    """What the bar says is being done."""
    what: ClassVar[str]
    """What messages call the work."""
    unit: ClassVar[str]
    """What the bar counts."""
    parts: list[np.ndarray]
    """Row numbers of each part."""

    @abstractmethod
    def n_units(self, rows: np.ndarray) -> int:
        """Return how many units of work some rows are."""

    @abstractmethod
    def forecast(self, rows: np.ndarray) -> None:
        """Say how much work some rows are, and how long it will take."""

    @abstractmethod
    def table_of(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Do a part; return its rows. `show` is called with units that are done."""

    @abstractmethod
    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return the metadata that need all rows, part by part."""

    @property
    def columns_for_metadata(self) -> list[str] | None:
        """Columns that `further` needs; None for all."""
        return None

    def run(
        self, out: str | Path | None, metadata: Mapping[str, Any], plan: Mapping[str, Any], *, overwrite: bool
    ) -> TableT:
        """Do all parts, in memory or into a file."""
        done = self._in_memory(metadata) if out is None else self._on_disk(Path(out), metadata, plan, overwrite)
        return cast(TableT, done)

    def _in_memory(self, metadata: Mapping[str, Any]) -> BlockTable:
        with self._shown(range(len(self.parts))) as bar:
            tables = [self.table_of(part, bar.update) for part in self.parts]
        frame = self.kind.form.as_frame(pa.concat_tables(tables))
        return self.kind(frame, {**metadata, **self.further(tables)})

    def _on_disk(self, out: Path, metadata: Mapping[str, Any], plan: Mapping[str, Any], overwrite: bool) -> BlockTable:
        """Do what is missing of the parts, with the other processes; return the table, which stays on disk."""
        with working_on(out, plan, what=self.what, overwrite=overwrite) as work:
            if not work.is_delivered:
                parts = Parts(work, len(self.parts), suffix=".parquet")
                done = set(range(len(self.parts))) - set(parts.missing)
                with self._shown(parts.mine, done=done) as bar:
                    for i in parts.mine:
                        table = self.table_of(self.parts[i], bar.update)
                        parts.keep(i, partial(pq.write_table, table, compression="zstd"))
                processes.wait()
                if processes.is_first():
                    self._merge(parts.paths, metadata, work)
        return self.kind._opened(out)

    def _merge(self, parts: Sequence[Path], metadata: Mapping[str, Any], work: Work) -> None:
        """Make the parts the row groups of one file."""
        further = self.further(pq.read_table(path, columns=self.columns_for_metadata) for path in parts)
        with (
            progress("merge", total=len(parts), unit="parts", quiet=len(parts) < FEW_PARTS) as bar,
            work.result() as aside,
        ):
            self.kind.form.write(aside, _counted(map(pq.read_table, parts), bar), {**metadata, **further})

    def _shown(self, parts: Sequence[int], done: Iterable[int] = ()) -> AbstractContextManager[Bar]:
        """Say what is to be done and how long it will take; show a bar."""
        n_done, n_to_do = (sum(self.n_units(self.parts[i]) for i in which) for which in (done, parts))
        if processes.is_first() and n_to_do:
            self.forecast(np.concatenate([self.parts[i] for i in parts]))
        return progress(
            self.verb,
            total=n_done + n_to_do,
            unit=self.unit,
            done=n_done,
            quiet=not processes.is_first(),
            facts=lambda: {"peak_memory_gb": round(processes.peak_memory_gb(), 2)},
        )


class Counted:
    """A bar's counter that is given no more, and at the end no less, than was announced."""

    def __init__(self, show: Callable[[int], object], total: int) -> None:
        self._show, self._left = show, total

    def __call__(self, n: int) -> None:
        """Count units that are done."""
        n = min(n, self._left)
        self._left -= n
        self._show(n)

    def finish(self) -> None:
        """Count what is left."""
        self(self._left)


def require_output(out: str | Path | None, *, what: str, overwrite: bool) -> None:
    """Raise before the work if `out` may not be written, or if several processes have none to share."""
    if out is not None:
        processes.agreed(lambda: unfinished.refuse(Path(out), overwrite=overwrite))
    elif processes.count() > 1:
        raise InputError(f"Several processes share {what} through its file; give out= (--out).")


def require_same_plan(out: str | Path | None, plan: Mapping[str, Any], *, what: str, overwrite: bool) -> None:
    """Raise, before costly preparations, if unfinished work on `out` has another plan."""
    if out is not None:
        processes.agreed(lambda: unfinished.refuse_other(Path(out), plan, what=what, overwrite=overwrite))


def _counted(tables: Iterable[pa.Table], bar: Bar) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        bar.update()


def batch_tokens(max_tokens: int | None, device: torch.device) -> int:
    """Return the tokens of a batch that were asked for, or what suits a device."""
    if max_tokens is not None:
        return max_tokens
    return CPU_TOKENS if device.type == "cpu" else MAX_TOKENS


def in_words(seconds: float) -> str:
    """Say a time as people do."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


def worth(seconds: float, n_rows: int, rows: str) -> str:
    """Say how long work takes; of long work also how long fewer rows would."""
    text = f"about {in_words(seconds)} here"
    n_fewer = 10 ** int(np.log10(max(1, n_rows / 5)))
    if seconds > LONG_SECONDS:
        text += f"; {in_words(seconds * n_fewer / n_rows)} for {n_fewer:,} {rows} (max_cells)"
    return text
