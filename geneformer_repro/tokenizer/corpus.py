"""Many sources as one corpus: found, opened, cut into parts, and the parts worked off by processes or a cluster.

The cut depends on the sources alone, never on who does the work, so one process, eight, and a cluster write the same
bytes, and a finished part is finished for whoever goes on.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from glob import escape, glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from geneformer_repro.errors import ChangedDataError, DataFormatError, InputError
from geneformer_repro.files import damage, is_there, new_file, read_json, sha256, sync, write_json, write_manifest
from geneformer_repro.progress import progress
from geneformer_repro.sharing import by_processes, die_with, on_ray, require_ray, usable_threads
from geneformer_repro.tokenizer.containers import files_of, in_memory, is_zarr, mtx_files, not_there
from geneformer_repro.tokenizer.matrices import BLOCK_CELLS, as_csr
from geneformer_repro.tokenizer.measures import COUNTS, Measure
from geneformer_repro.tokenizer.readers import CountSource, open_counts
from geneformer_repro.tokenizer.tables import is_expression_table

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_SUFFIXES = (".h5ad", ".h5mu", ".loom", ".h5")
_KINDS_OF_SOURCES = ".h5ad, .h5mu, .loom, .h5, .zarr or matrix.mtx"
_CELL_RANGER = re.compile(r".*(raw|filtered)_(feature_bc_matrix|gene_bc_matrices)(_mex|_h5)?(\.h5)?")
_LONGEST_NAME = 255
_SMALLEST_PART = 4 * BLOCK_CELLS
_MOST_PARTS = 1000
"""Parts of a corpus of one file; one of many files has at most so many more."""

Source: TypeAlias = "AnnData | Path"
Sources: TypeAlias = "AnnData | str | Path | Sequence[AnnData | str | Path]"


class Part(NamedTuple):
    """Consecutive cells of one source."""

    number: int
    source: int
    start: int
    stop: int


def find_sources(inputs: Sources) -> list[Source]:
    """Return what is to be read, in a fixed order.

    Parameters
    ----------
    inputs
        An AnnData; a path: a file, a glob (``"data/**/*.h5ad"``), or a folder, which stands for every ``.h5ad``,
        ``.h5mu``, ``.loom``, ``.h5``, ``.zarr`` and ``matrix.mtx`` in and below it, sorted; or several of them. Tables
        (``.tsv``, ``.csv`` …) are read where they are named, or matched by a glob that ends like one: in a folder many
        are not.

    Raises
    ------
    InputError
        A path does not exist, a glob or folder has nothing, a source is given twice, or a folder is the ``outs`` of
        Cell Ranger, which holds the same cells more than once.
    """
    several = list(inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
    sources = [source for item in several for source in _sources_of(item)]
    if not sources:
        raise InputError("No source was given. Give an AnnData, paths, a glob, or a folder.")
    seen: set[Any] = set()
    for source in sources:
        key = files_of(source)[0].resolve() if isinstance(source, Path) else id(source)
        if key in seen:
            raise InputError(f"{source} is given twice; its cells would count twice.")
        seen.add(key)
    return sources


def _sources_of(source: "AnnData | str | Path") -> list[Source]:
    if hasattr(source, "obs_names"):
        return [source]
    path = Path(source)
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise InputError(f"{str(path)[:80]}…: no such file; the name is longer than any can be.")
    if re.match(r"\w+://", str(source)):
        raise InputError(f"{source}: is not on this machine. Download it, and give its path.")
    if not is_there(path) and not path.is_symlink() and has_magic(str(source)):
        pattern = _with_literal_folders(path)
        matches = [Path(name) for name in sorted(glob(pattern, recursive=True))]  # noqa: PTH207, Path.glob wants a root
        if not matches:
            raise InputError(f"{source}: nothing matches.")
        stores = [match for match in matches if match.is_dir() and is_zarr(match)]
        outside = [match for match in matches if not any(store in match.parents for store in stores)]
        of_tables = is_expression_table(path)
        sources = [
            source for match in outside for source in ([match] if of_tables or _is_source(match) else _below(match))
        ]
        if not sources:
            raise InputError(f"{source}: no {_KINDS_OF_SOURCES} among what matches.")
        return list({files_of(source)[0]: source for source in sources}.values())  # "**" matches folders and files
    if not is_there(path):
        raise InputError(not_there(path))
    if not path.is_dir() or is_zarr(path):
        return [path]
    below = _below(path)
    if not below:
        raise InputError(f"{path}: a folder without any {_KINDS_OF_SOURCES}.")
    _refuse_cell_ranger(below, below=path)
    return [path] if below == mtx_files(path) and len(below) == 1 else below


def _with_literal_folders(path: Path) -> str:
    """Return a glob whose beginning, as far as there are such folders, is taken as it is written: ``[1]``."""
    folder = next(folder for folder in path.parents if folder.is_dir())
    return str(Path(escape(str(folder)), path.relative_to(folder)))


def _is_source(path: Path) -> bool:
    if path.is_dir():
        return is_zarr(path) or len(mtx_files(path)) == 1
    return path.suffix.lower() in _SUFFIXES or path in mtx_files(path.parent)


def _refuse_cell_ranger(sources: Sequence[Path], *, below: Path) -> None:
    outputs: dict[Path, Path] = {}
    for source in sources:
        for path in (source, *source.parents):
            if path == below:
                break
            if _CELL_RANGER.fullmatch(path.name) and outputs.setdefault(path.parent, path) != path:
                raise InputError(
                    f"{path.parent}: Cell Ranger's output holds the same cells more than once "
                    f"({outputs[path.parent].name}, {path.name}), and the raw one also empty droplets. Name the one to "
                    f"read, most likely filtered_feature_bc_matrix.h5."
                )


def _below(folder: Path) -> list[Path]:
    """Return the sources in and below a folder; what is there again through a link counts once."""
    by_target: dict[Path, Path] = {}
    for path in sorted(_every_below(folder, frozenset()), key=lambda path: (path.is_symlink(), path)):
        first = by_target.setdefault(path.resolve(), path)
        if first is not path:
            logger.info("%s: is %s again, through a link; read once.", path, first)
    return sorted(by_target.values())


def _every_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    if not folder.is_dir() or folder.resolve() in above:
        return
    yield from mtx_files(folder)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not is_zarr(path):
            yield from _every_below(path, above | {folder.resolve()})
        elif path.is_dir() or path.suffix.lower() in _SUFFIXES:
            yield path


def labels_of(sources: Sequence[Source]) -> list[str]:
    """Return a name for each source that says nothing of the machine: its path below what all share."""
    paths = [Path(os.path.abspath(source)) if isinstance(source, Path) else None for source in sources]  # noqa: PTH100
    parents = [set(path.parents) for path in paths if path is not None]
    shared = max(set.intersection(*parents), key=lambda folder: len(folder.parts)) if parents else Path()
    return [f"AnnData {i}" if path is None else path.relative_to(shared).as_posix() for i, path in enumerate(paths)]


def identity(source: Source) -> dict[str, Any]:
    """Return what tells a source from a changed one: path, size and time of change of its files, or a digest.

    Or that it cannot be looked at: a link that leads nowhere, a lost disk.
    """
    if not isinstance(source, Path):
        return {"path": None, "sha256": _digest(source)}
    try:
        states = [path.stat() for path in files_of(source)]
    except OSError as error:
        return {"path": str(source), "error": error.strerror}
    return {
        "path": str(source.resolve()),
        "bytes": sum(state.st_size for state in states),
        "modified": max(state.st_mtime_ns for state in states),
    }


def require_identity(path: Path, before: Mapping[str, Any], *, name: str) -> None:
    """Raise if a source on disk is no longer what `identity` said before it was read.

    Raises
    ------
    ChangedDataError
        It was replaced or written to.
    """
    if identity(path) != before:
        raise ChangedDataError(
            f"{name}: changed while it was read, so nothing that was read of it is used. Wait until it is written, and "
            "give the same call again."
        )


def is_unchanged(recorded: Mapping[str, Any]) -> bool:
    """Whether what `identity` said of a source still holds."""
    path = recorded.get("path")
    return path is not None and identity(Path(path)).items() <= recorded.items()


def _digest(adata: "AnnData") -> str:
    digest = hashlib.sha256()
    for table in (adata.obs, adata.var, *([adata.raw.var] if adata.raw is not None else [])):
        digest.update(in_memory(table).to_csv().encode())
    for block in _unchecked_blocks(adata):
        digest.update(block)
    return digest.hexdigest()


def _unchecked_blocks(adata: "AnnData") -> Iterator[bytes]:
    for matrix in (adata.X, *adata.layers.values(), *([adata.raw.X] if adata.raw is not None else [])):
        for start in range(0, adata.n_obs if matrix is not None else 0, BLOCK_CELLS):
            block = as_csr(matrix[start : start + BLOCK_CELLS])
            yield from (array.tobytes() for array in (block.data, block.indices, block.indptr))


def parts_of(sizes: Sequence[int], smallest: int = _SMALLEST_PART) -> list[Part]:
    """Cut sources of these numbers of cells into parts of `smallest` cells, or two, four … times that if large."""
    size = smallest
    while sum(sizes) / size > _MOST_PARTS:
        size *= 2
    bounds = [
        (i, start, min(start + size, n_cells)) for i, n_cells in enumerate(sizes) for start in range(0, n_cells, size)
    ]
    return [Part(number, *bound) for number, bound in enumerate(bounds)]


@dataclass(eq=False)
class Corpus:
    """The sources of a piece of work, opened when they are needed.

    Parameters
    ----------
    sources
        From `find_sources`.
    labels
        Name of each source, from `labels_of`.
    names
        Each source as the user wrote it, for messages.
    options
        ``layer`` and ``gene_ids``, as for `open_counts`.
    workers, ray
        Who shares the work, as for `tokenize`.
    measure
        What the sources hold.
    """

    sources: list[Source]
    labels: list[str]
    names: list[str]
    options: Mapping[str, str | None]
    workers: int | None = None
    ray: bool = False
    measure: Measure = COUNTS
    work: Path | None = field(default=None, init=False)
    """Folder for copies of matrices stored by gene; None for temporary ones."""
    sizes: list[int] = field(default_factory=list, init=False)
    """Number of cells of each source, 0 for a damaged one; known after `check`."""
    by_gene: list[int] = field(default_factory=list, init=False)
    """Sources whose matrix is stored by gene; known after `check`."""
    identities: list[dict[str, Any]] = field(default_factory=list, init=False)
    """What tells each source from a changed one, as it was just before it was first opened."""
    failed: dict[int, str] = field(default_factory=dict, init=False)
    """Sources that turned out damaged: index → message. Their parts are skipped and dropped."""

    def __post_init__(self) -> None:
        self.open = lru_cache(maxsize=4)(self._open)

    @classmethod
    def find(
        cls,
        inputs: Sources,
        *,
        layer: str | None,
        gene_ids: str | None,
        measure: Measure = COUNTS,
        workers: int | None,
        ray: bool,
    ) -> "Corpus":
        """Find the sources; nothing is opened yet.

        Raises
        ------
        InputError
            There are none (see `find_sources`), `workers` is not a positive number, or there are workers for an AnnData
            in memory.
        MissingExtraError
            Ray is asked for and not installed.
        """
        sources = find_sources(inputs)
        names = [str(source) if isinstance(source, Path) else "AnnData" for source in sources]
        options = {"layer": layer, "gene_ids": gene_ids}
        corpus = cls(sources, labels_of(sources), names, options, workers, ray, measure)
        if workers is not None and not (isinstance(workers, int) and workers >= 1):
            raise InputError(f"workers must be a whole number of at least 1, found {workers!r}.")
        if corpus.is_shared and not all(isinstance(source, Path) for source in sources):
            raise InputError(
                "workers= and ray= share out files; other processes cannot read an AnnData in memory. Write it to an "
                ".h5ad, or leave them out."
            )
        if ray:
            require_ray()
        return corpus

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any]) -> "Corpus":
        """Make the corpus that `as_plan` describes, in another process."""
        sources = [Path(source["path"]) for source in plan["sources"]]
        options = {name: plan["options"][name] for name in ("layer", "gene_ids")}
        measure = Measure(plan["options"].get("values", "counts"), plan["options"].get("log2", False))
        corpus = cls(sources, plan["labels"], plan["names"], options, measure=measure)
        corpus.sizes = plan["sizes"]
        return corpus

    def as_plan(self) -> dict[str, Any]:
        """Return what tells this corpus from another, as JSON can hold it; after `check`."""
        return {"sources": self.identities, "labels": self.labels, "names": self.names, "sizes": self.sizes}

    @property
    def is_shared(self) -> bool:
        """Whether other processes do the work."""
        return self.ray or (self.workers or 1) > 1

    def __len__(self) -> int:
        return len(self.sources)

    def _open(self, i: int) -> CountSource:
        work = None if self.work is None else self.blocks_folder(i)
        source = open_counts(self.sources[i], **self.options, measure=self.measure, work=work)
        return replace(source, name=self.names[i])

    def keep_in(self, work: Path) -> None:
        """Keep the copies of matrices stored by gene in this folder."""
        self.work = work
        if self.by_gene:
            self.open.cache_clear()

    def blocks_folder(self, i: int) -> Path:
        """Where the copy of a matrix stored by gene is kept, once there is a work folder."""
        assert self.work is not None
        return self.work / f"{i:05d}"

    def check(self, check: Callable[[int, CountSource], None]) -> None:
        """Open every source once and look at it; a damaged one is noted.

        Raises
        ------
        DataFormatError
            The only source is damaged, or all are.
        InputError
            What was asked does not fit a source.
        """
        self.identities.clear()
        self.sizes = [0] * len(self)
        with progress("check", total=len(self), unit="sources", quiet=len(self) == 1) as bar:
            for i in range(len(self)):
                self.identities.append(identity(self.sources[i]))
                try:
                    source = self.open(i)
                    check(i, source)
                    self.sizes[i] = source.n_cells
                    self.by_gene += [i] if source.stored_by_gene else []
                except DataFormatError as error:
                    self.note(i, error)
                bar.update()

    def require_all_unchanged(self) -> None:
        """Raise if any source is no longer what it was; see `require_unchanged`."""
        for i in range(len(self)):
            self.require_unchanged(i)

    def require_unchanged(self, i: int, *, quickly: bool = False) -> None:
        """Raise if a source on disk is no longer what it was just before it was first opened.

        Parameters
        ----------
        i
            The source.
        quickly
            Pass over a Zarr store, whose files are too many to look at after each part.

        Raises
        ------
        ChangedDataError
            It was replaced or written to.
        """
        source = self.sources[i]
        if isinstance(source, Path) and not (quickly and source.is_dir() and is_zarr(source)):
            require_identity(source, self.identities[i], name=self.names[i])

    def note(self, i: int, error: DataFormatError) -> None:
        """Remember that a source is damaged.

        Raises
        ------
        DataFormatError
            It was the last one left.
        ChangedDataError
            It is not damaged, but being written to.
        """
        self.require_unchanged(i)
        self.failed[i] = str(error)
        if len(self.sources) == 1:
            raise error
        logger.error("%s: left out. %s", self.labels[i], error)
        if len(self.failed) == len(self.sources):
            raise DataFormatError(
                f"None of the {len(self.sources)} sources can be used. The first: {self.failed[min(self.failed)]}"
            )


class Job(ABC):
    """Work on a corpus of which any process can do a part, given the folder it is kept in.

    Subclasses have a method for each step, which does one part and leaves its result in `work`; a `plan`; and
    `from_plan`, which makes the job anew in another process.
    """

    corpus: Corpus
    work: Path
    threads = 1
    """Threads that each process may use for compiled loops."""

    @property
    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What makes two calls the same work, and all that another process needs to know of it."""

    @classmethod
    @abstractmethod
    def from_plan(cls, work: Path) -> "Job":
        """Make the job that a work folder holds."""

    def use(self, work: Path) -> None:
        """Keep everything in this folder."""
        self.work = work
        self.corpus.keep_in(work / "blocks")

    def deal_out_all(self) -> None:
        """Copy every matrix stored by gene into blocks of cells, if an earlier run has not."""
        self.share(
            "deal_out", [Part(i, i, 0, self.corpus.sizes[i]) for i in self.corpus.by_gene if not self._is_dealt_out(i)]
        )

    def _is_dealt_out(self, i: int) -> bool:
        folder = self.corpus.blocks_folder(i)
        if not folder.exists():
            return False
        wrong = damage(folder)
        if wrong:
            logger.warning("%s: %s; it is made again.", folder, wrong)
            shutil.rmtree(folder)
        return not wrong

    def deal_out(self, part: Part) -> None:
        """Copy a matrix stored by gene into blocks of cells."""
        folder = self.corpus.blocks_folder(part.source)
        self.corpus.open(part.source).deal_out(folder)
        for path in folder.iterdir():
            sync(path)
        write_manifest(folder)

    def share(self, step: str, parts: Sequence[Part], *, on_done: Callable[[Part], None] = lambda part: None) -> None:
        """Do a step for these parts; those of sources that turn out damaged are skipped from then on.

        Parameters
        ----------
        step
            Name of the method; word before the progress bar.
        parts
            Parts to do; the others of the corpus were done by an earlier run.
        on_done
            Called in this process after each part, in the order in which they are finished.

        Raises
        ------
        DataFormatError
            The only source is damaged, or all are.
        InputError
            A worker process died.
        """
        if not parts:
            return
        left = (part for part in parts if part.source not in self.corpus.failed)
        total, todo = sum(self.corpus.sizes), sum(part.stop - part.start for part in parts)
        with (
            progress(step.replace("_", " "), total=total, unit="cells", done=max(0, total - todo)) as bar,
            closing(self._finished(step, left)) as finished,
        ):
            for part, message in finished:
                self.corpus.require_unchanged(part.source, quickly=message is None)
                if message is None:
                    on_done(part)
                elif part.source not in self.corpus.failed:
                    self.corpus.note(part.source, DataFormatError(message))
                bar.update(part.stop - part.start)

    def _finished(self, step: str, parts: Iterable[Part]) -> Generator[tuple[Part, str | None], None, None]:
        """Do a step for these parts; yield each with the message of `_do`."""
        if not self.corpus.is_shared:
            self.threads = usable_threads()
            for part in parts:
                yield part, _do(self, step, part)
            return
        parent = None if self.corpus.ray else os.getpid()
        threads = 1 if self.corpus.ray else usable_threads(self.corpus.workers or 1)
        do = partial(_do_elsewhere, type(self), self.work.resolve(), _digest_of_json(self.plan), parent, threads, step)
        if self.corpus.ray:
            yield from on_ray(parts, do, self.corpus.workers)
        else:
            yield from by_processes(parts, do, self.corpus.workers or 1)


def write_report(path: Path, content: Mapping[str, Any], written: Mapping[Path, str]) -> None:
    """Say, last of all, that a part is finished: what it came to, with digests of that and of the files it wrote."""
    report = {**content, "files": {os.path.relpath(file, path.parent): digest for file, digest in written.items()}}
    with new_file(path, overwrite=True) as aside:
        write_json(aside, {**report, "sha256": _digest_of_json(report)})


def is_finished(path: Path) -> bool:
    """Whether `write_report` has written the report of a part, and it and the files are as they were written."""
    if not path.exists():
        return False
    try:
        report = read_json(path)
    except InputError:
        report = {}
    is_whole = report.pop("sha256", None) == _digest_of_json(report) and all(
        (path.parent / name).is_file() and sha256(path.parent / name) == digest
        for name, digest in report["files"].items()
    )
    if not is_whole:
        logger.warning("%s: the part is not as it was written; it is made again.", path)
    return is_whole


def _digest_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _do(job: Job, step: str, part: Part) -> str | None:
    """Do a part; return the message if the data are to blame."""
    try:
        getattr(job, step)(part)
    except DataFormatError as error:
        return str(error)
    return None


def _do_elsewhere(
    kind: type[Job], work: Path, digest: str, parent: int | None, threads: int, step: str, part: Part
) -> str | None:
    if parent is not None:
        die_with(parent)
    job = _job_of(kind.from_plan, work, digest)
    job.threads = threads
    return _do(job, step, part)


@lru_cache(maxsize=1)
def _job_of(from_plan: Callable[[Path], Job], work: Path, digest: str) -> Job:
    """Make a job, once for its parts: a worker lives on, for another plan in the same folder too, told by `digest`."""
    del digest
    return from_plan(work)
