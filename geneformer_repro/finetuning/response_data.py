"""Samples, drugs, and how the ones responded to the others: what is given, read and joined to rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from geneformer_repro.arguments import typed
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionInputs
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.settings.pairs import ResponseConfig
from geneformer_repro.identities import Aliases
from geneformer_repro.responses import MEASURES, Responses, read_responses
from geneformer_repro.sample_reading import matrix_inputs, opened_matrix, opened_samples
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.tables import read_rows


@dataclass(frozen=True, eq=False)
class ResponseData:
    """Samples, drugs, and how the ones responded to the others.

    See Also
    --------
    finetune_response : Takes the same, one by one.
    transfer_study : Takes two, to go from one to the other.

    Examples
    --------
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> samples = pd.DataFrame([[0.1, 2.0], [1.2, 0.3]], index=["A-1", "B-2"], columns=["TP53", "EGFR"])
    >>> table = pd.DataFrame({"sample": ["A1", "B2"], "drug": ["X", "X"], "auc": [0.4, 0.9]})
    >>> data = gf.ResponseData.read(samples, table, measure="AUC")
    >>> len(data.responses), data.responses.measure, data.drugs.names
    (2, 'AUC', ('X',))
    """

    samples: AnnData | pd.DataFrame | TokenizedDataset
    """A matrix, or tokens."""
    responses: Responses
    """How samples responded to drugs."""
    drugs: Drugs
    """The drugs."""
    expression: AnnData | pd.DataFrame | None = None
    """Beside tokens, a matrix of the same samples."""
    aliases: Aliases | None = None
    """What else samples are called."""
    vectors: pd.DataFrame | None = None
    """Of each drug, by name, numbers of your own."""

    @classmethod
    @typed
    def read(
        cls,
        samples: TokenizedDataset | AnnData | pd.DataFrame | str | Path,
        responses: Responses | pd.DataFrame | str | Path,
        drugs: Drugs | pd.DataFrame | str | Path | None = None,
        *,
        measure: str | None = None,
        expression: AnnData | pd.DataFrame | str | Path | None = None,
        aliases: Aliases | pd.DataFrame | str | Path | None = None,
        vectors: pd.DataFrame | str | Path | None = None,
    ) -> "ResponseData":
        """Read what is a file; see `finetune_response`.

        Raises
        ------
        InputError
            A table of responses comes without `measure`, or as `read_samples`, `read_responses` and `Drugs.of_table`.

        See Also
        --------
        read_responses : Of a table of responses.

        Examples
        --------
        >>> import pandas as pd
        >>> import geneformer_repro as gf
        >>> samples = pd.DataFrame([[0.1, 2.0], [1.2, 0.3]], index=["A-1", "B-2"], columns=["TP53", "EGFR"])
        >>> wide = pd.DataFrame({"sample": ["A1", "B2"], "X": [0.4, 12.0], "Y": [3.0, 0.2]})
        >>> data = gf.ResponseData.read(samples, wide, measure="IC50_uM")
        >>> data.responses.measure, data.drugs.names
        ('LN_IC50', ('X', 'Y'))
        """
        if not isinstance(responses, Responses):
            if measure is None:
                raise InputError(
                    f"measure= is missing: say what the responses are, one of {', '.join(MEASURES)}, IC50_uM, IC50_nM."
                )
            known = drugs if isinstance(drugs, Drugs) else None
            responses = read_responses(responses, measure=measure, drugs=known)
        if drugs is None:
            drugs = Drugs.of_names(list(dict.fromkeys(responses.pairs["drug"])))
        return cls(
            opened_samples(samples),
            responses,
            drugs if isinstance(drugs, Drugs) else Drugs.of_table(drugs),
            None if expression is None else opened_matrix(expression),
            aliases if aliases is None or isinstance(aliases, Aliases) else Aliases.of_table(aliases),
            None if vectors is None else _vectors(vectors),
        )

    def problem(self, config: ResponseConfig) -> PairProblem:
        """Join all to rows.

        Raises
        ------
        InputError
            `config.values` or the column of tissues is missing, or no response has a sample and a drug.
        DataFormatError
            A matrix does not hold what `config.values` says.

        See Also
        --------
        finetune_response : Learns them.

        Examples
        --------
        >>> import pandas as pd
        >>> import geneformer_repro as gf
        >>> samples = pd.DataFrame([[0.1, 2.0], [1.2, 0.3]], index=["A-1", "B-2"], columns=["TP53", "EGFR"])
        >>> wide = pd.DataFrame({"sample": ["A1", "B2"], "X": [0.4, 12.0], "Y": [3.0, 0.2]})
        >>> problem = gf.ResponseData.read(samples, wide, measure="IC50_uM").problem(gf.ResponseConfig())
        >>> problem.names.tolist()
        ['A-1/X', 'A-1/Y', 'B-2/X', 'B-2/Y']
        """
        matrix = self.expression if isinstance(self.samples, TokenizedDataset) else self.samples
        named = None if matrix is None else matrix_inputs(matrix, config.values, config.log2, config.genes)
        how: dict[str, Any] = {
            "tissues": None if config.tissue is None else self._tissues(config.tissue),
            "aliases": self.aliases,
            "vectors": self.vectors,
            "split_by": config.split,
        }
        if isinstance(self.samples, TokenizedDataset):
            beside = None if named is None else _as_table(*named)
            return PairProblem.of(self.samples, self.responses, self.drugs, expression=beside, **how)
        assert named is not None  # samples that are no tokens are a matrix
        names, inputs = named
        return PairProblem.of(inputs, self.responses, self.drugs, sample_names=[*names], **how)

    def _tissues(self, column: str) -> pd.Series:
        obs = self.samples.obs if not isinstance(self.samples, pd.DataFrame) else pd.DataFrame()
        if column not in obs:
            raise InputError(f"The samples have no obs column {column!r}. {did_you_mean(column, obs.columns)}")
        return as_labels(obs[column])


def _vectors(table: pd.DataFrame | str | Path) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    called, rows = read_rows(table, "The table of vectors")
    numbers = rows.set_index(rows.columns[0])
    wrong = [column for column in numbers if not pd.api.types.is_numeric_dtype(numbers[column])]
    if wrong:
        raise InputError(f"{called}: after the names of drugs, columns hold numbers; {wrong[0]!r} does not.")
    return numbers


def _as_table(names: np.ndarray, inputs: ExpressionInputs) -> pd.DataFrame:
    return pd.DataFrame(inputs.values["expression"], index=names, columns=list(inputs.names["expression"]))
