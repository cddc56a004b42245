"""Asking a network of patients about new ones, and which of their cells it looks at.

The folder that `finetune_patients` wrote says how: which columns name patients and types of cells, and which vectors
the network learned. A bag network takes any vectors of the right length, and on those of another encoder it would give
numbers that mean nothing, so the encoder must be the one of the run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.bags import NETWORK_FILE, WEIGHTS_FILE, BagNetwork
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.files import provenance, sha256, write_json, write_table
from geneformer_repro.finetuning.attention import cells_table, patients_table, said_of_cells
from geneformer_repro.finetuning.patient_cells import patient_cells
from geneformer_repro.finetuning.problems.patients import PatientProblem, new_patients
from geneformer_repro.patient_reading import RECORD, record_of, require_encoder, run_columns
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.work import working_on

if TYPE_CHECKING:
    from anndata import AnnData

VERSION = 1
"""Raised when the same call gives other results."""


@dataclass(frozen=True, eq=False)
class PatientPredictions:
    """What a network says of new patients.

    See Also
    --------
    predict_patients : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.PatientPredictions)]
    ['patients', 'attention']
    """

    patients: pd.DataFrame
    """A row a patient: ``patient``, ``n_cells``, predictions of each target as `predict` names them,
    ``attention_entropy`` (1: all cells count alike) and ``top_cells``."""
    attention: pd.DataFrame
    """A row a cell: ``cell``, ``patient``, ``cell_type`` where given, ``attention`` (of a patient's cells the sum is 1)
    and ``relative_attention`` (1: as any other)."""


@typed
def predict_patients(
    run: str | Path,
    cells: "TokenizedDataset | AnnData | str | Path",
    *,
    checkpoint: Checkpoint | None = None,
    patient: str | None = None,
    vectors: str | None = None,
    cell_type: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> PatientPredictions:
    """Predict labels of new patients from their cells, with the attention that each cell gets.

    Parameters
    ----------
    run
        Folder that `finetune_patients` wrote.
    cells
        Cells of new patients, as for `finetune_patients`; they need no labels.
    checkpoint
        For tokenised cells: the one whose encoder made the vectors of the run.
    patient, vectors, cell_type
        Columns of ``obs``, and key of ``obsm``; by default those of the run. Types that the run did not have count as
        of no type.
    out
        Also write ``patients.tsv`` and ``attention.tsv`` into this folder; a call that was cut off goes on.
    overwrite
        Replace a result that `out` holds; drop unfinished work with other inputs.

    Returns
    -------
    What is said of each patient, and of each cell. Cells without a patient, or without a gene, are left out.

    Raises
    ------
    InputError
        The folder holds no such network, the encoder is another one, a column or key is missing, vectors are of another
        length or not finite, or no cell of a patient has a gene.
    FileExistsError
        `out` exists, or unfinished work with other inputs.

    See Also
    --------
    finetune_patients : Makes the network.
    predict : Asks one of cells or samples.

    Examples
    --------
    >>> import numpy as np
    >>> import geneformer_repro as gf
    >>> adata = gf.datasets.pbmc700()
    >>> adata.obs["sample"] = [f"sample{i % 14:02d}" for i in range(adata.n_obs)]
    >>> adata.obs["arm"] = ["even" if i % 2 else "odd" for i in range(adata.n_obs)]
    >>> adata.obsm["X_ten"] = np.log1p(adata.X[:, :10].toarray())
    >>> config = gf.PatientConfig(
    ...     patient="sample", target="arm", vectors="X_ten", split={"folds": 2}, training={"epochs": 5},
    ...     compare={"baselines": False},
    ... )
    >>> made = gf.finetune_patients(None, adata[:600].copy(), config, out="runs/arm")
    >>> found = gf.predict_patients("runs/arm", adata[600:].copy())
    >>> found.patients.columns.tolist()
    ['patient', 'n_cells', 'arm_predicted', 'arm_probability', 'arm_p_even', 'arm_p_odd', 'attention_entropy',
     'top_cells']
    >>> len(found.patients), len(found.attention)
    (14, 100)
    """
    processes.join()
    network, run = BagNetwork.open(run), Path(run)
    record = record_of(run)
    columns = run_columns(run, record, {"patient": patient, "vectors": vectors, "cell_type": cell_type})
    require_encoder(run, record, checkpoint)
    source = patient_cells(checkpoint, cells, columns["vectors"])
    problem = new_patients(
        source.obs, source.names, source.usable, network, patient=columns["patient"], cell_type=columns["cell_type"]
    )
    if out is None:
        return _asked(network, problem.with_vectors(source.vectors(problem, None)))
    inputs = source.fingerprints(problem) | {"problem": problem.digest()}
    inputs |= {"network": "".join(sha256(run / name) for name in (NETWORK_FILE, WEIGHTS_FILE))}
    plan = {"step": "predict_patients", "version": VERSION, "config": columns, **inputs}
    with working_on(out, plan, what="prediction", marker=RECORD, overwrite=overwrite) as work:
        found = _asked(network, problem.with_vectors(source.vectors(problem, work.folder)))
        if processes.is_first():
            with work.result() as folder:
                folder.mkdir()
                write_table(found.patients, folder / "patients.tsv", index=False)
                write_table(found.attention, folder / "attention.tsv", index=False)
                write_json(folder / RECORD, provenance("predict_patients", config=columns, inputs=inputs))
    return found


def _asked(network: BagNetwork, problem: PatientProblem) -> PatientPredictions:
    n_given, n_learned = problem.bags.vectors_ND.shape[1], network.shape.n_inputs
    if n_given != n_learned:
        raise InputError(
            f"The network learned vectors of {n_learned} numbers, and these cells have such of {n_given}. Give cells "
            "with vectors of the model that the run took them from."
        )
    said = said_of_cells(problem.ask(network, np.arange(len(problem.patients))))
    return PatientPredictions(patients_table(problem, said), cells_table(problem, said))
