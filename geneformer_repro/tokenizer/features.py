"""Which rows of a container are genes, and which gene a row is named after.

Beside genes, files hold antibodies, guides, peaks, spike-ins and the summary rows of counting programs, often under the
name of a gene. What a row is, is told by the column for it (``feature_types`` of 10x and others), and by its name where
the name says it.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_ENSEMBL = r"ENS[A-Z]{0,6}G\d{11}(?:\.\d+)?(?:_PAR_Y)?"
_ENSEMBL_GENE = re.compile(rf"{_ENSEMBL}\Z", re.IGNORECASE)
_ENSEMBL_INSIDE = re.compile(rf"(?<![A-Za-z0-9]){_ENSEMBL}(?![A-Za-z0-9])", re.IGNORECASE)
_VERSION = re.compile(r"(\.\d+)?(_PAR_Y)?\Z")
_KIND_COLUMNS = ("featuretypes", "featuretype", "featurebiotype", "modality")
_GENES = ("gene expression", "gene", "genes", "gex", "rna", "mrna", "expression")
_NO_GENES = re.compile(
    r"(antibod(y|ies)( capture)?|antibody derived tags?|adt|hto|cite|(surface )?proteins?|protein expression"
    r"|crispr( guide capture)?|guides?( capture)?|(sg|g)rna|perturbation|custom|peaks?|atac|chromatin accessibility"
    r"|multiplexing( capture)?|cell multiplexing oligo|cmo|hashtags?( oligo)?|hashing|antigen( capture)?|vdj( [tb])?"
    r"|spike ?ins?|ercc)\Z"
)
_BY_NAME = {
    "spike-in": r"(gSpikein_)?ERCC[-_.]\d{5}|gSpikein_.+|SIRV\d+(_.+)?|phiX(174)?",
    "summary row": r"__[a-z_]+|N_(unmapped|multimapping|noFeature|ambiguous)|no_feature|ambiguous|too_low_aQual"
    r"|not_aligned|alignment_not_unique|Unassigned_\w+",
    "peak": r"chr\w{1,30}[:_-]\d+[-_]\d+|\w[\w.]{0,30}:\d+-\d+",
    "antibody": r"(adt|hto|cite|prot)[-_:].+|anti[-_ ].+|.+([-_](totalseq-?[a-z]?|adt|hto)|\|pabo)"
    r"|hashtag[-_ ]?\d+.*|cmo\d{3}",
    "control": r"(neg(ative)?[-_ ]?(prb|probe|control)(probe|codeword)?|blank|(unassigned|deprecated)codeword"
    r"|systemcontrol)[-_ ]?\d+.*",
    "guide": r".+[-_](sg|g)rna[-_]?\d*|non[-_ ]?targeting([-_ ].*)?",
}
_NAMED = {why: re.compile(rf"({pattern})\Z", re.IGNORECASE) for why, pattern in _BY_NAME.items()}
_UNNAMED = re.compile(r"\?([-._]\d+)?(\|\d+)?\Z")
"""What stands where a symbol would, in Firehose's tables."""
_SAYS_NOTHING = re.compile(
    r"(?!cmo|hashtag|sirv|phix|nontarg|ambiguous|neg|blank|unass|depr|system)[a-z0-9]+([.-]\d{1,4})?\Z", re.IGNORECASE
)
"""What most symbols are like, and nothing of the above: one look in place of five."""
_ASSEMBLY = (
    r"GRC[hmzg]\d+[a-z]?|hg\d\d|mm\d+|m?[rR](?:n\d|atBN\d\S*?|nor_[\d.]+)|danRer\d+|dm\d|BDGP\d+|ce\d\d|sacCer\d|T2T-CHM13\S*?"
    r"|CHM13\S*?|Mmul_\d+|Sscrofa[\d.]+|human|mouse|rat"
)
_GENOME = re.compile(rf"(?P<genome>(?:{_ASSEMBLY})(?:[.-]p\d+)?(?:-20\d\d-[A-Z])?)_+(?P<gene>.+)", re.IGNORECASE)
_LABEL = re.compile(r"(?:gene|gene_id|gene_name|symbol|ensembl|rna|hgnc)(?::|[-_](?!\d))(?P<gene>.+)", re.IGNORECASE)
_ENTREZ_TAIL = re.compile(r"(?P<gene>[^|? ]+)(?:\|\d+| \(\d+\))\Z")


def texts(column: "pd.Series") -> list[str]:
    """Return a column as text without blanks around it, "" where a value is missing."""
    return [str(text).strip() for text in column.astype(object).where(column.notna(), "")]


@lru_cache(maxsize=1 << 16)  # each gene is asked about three times, and again in the next source
def is_ensembl_gene(text: str) -> bool:
    """Whether a text is, as a whole, an Ensembl gene id of some species, with or without a version."""
    return _ENSEMBL_GENE.match(text) is not None


def bare_id(gene: str) -> str:
    """Return an Ensembl gene id in capitals and without version; any other text as it is."""
    return _VERSION.sub("", gene.upper()) if is_ensembl_gene(gene) else gene


def ensembl_gene_in(text: str) -> str:
    """Return the only Ensembl gene id in a text such as ``ENSG00000141510.18|TP53``; "" if there is none or several."""
    if "ENS" not in text.upper():
        return ""
    ids = {bare_id(gene): gene for gene in reversed(_ENSEMBL_INSIDE.findall(text))}
    return next(iter(ids.values())) if len(ids) == 1 else ""


def genome_in(text: str) -> str:
    """Return the genome that a name begins with, as of a reference of two species (``mm10_Cd4``); else ""."""
    match = _GENOME.match(text) if "_" in text else None
    return match["genome"] if match else ""


def symbol_in(text: str) -> str:
    """Return a name without what programs put around it: genome, ``gene:``, ``rna_``, an Entrez id behind it."""
    for pattern in (_GENOME, _LABEL, _ENTREZ_TAIL):
        match = pattern.match(text)
        text = match["gene"] if match else text
    return text


def kinds_of(var: "pd.DataFrame") -> np.ndarray:
    """Say of each row what it is instead of a gene, by the columns for it; "" for a gene, and where they say nothing.

    Where some rows are "Gene Expression", all others that are something are no genes. Where none is, the known kinds
    are none; a biotype, a genome or "unknown" in such a column says nothing.
    """
    import pandas as pd

    why = np.full(len(var), "", dtype=object)
    for column in var.columns:
        if re.sub(r"[^a-z]", "", str(column).lower()) not in _KIND_COLUMNS:
            continue
        written = pd.Series(texts(var[column]), dtype=object)
        plain = written.str.lower().str.replace(r"[\s_-]+", " ", regex=True)
        is_gene = plain.isin(_GENES).to_numpy()
        named = np.array([bool(_NO_GENES.match(kind)) for kind in plain])
        other = named | (plain.ne("").to_numpy() & ~is_gene if is_gene.any() else False)
        why = np.where((why == "") & other, written.to_numpy(), why)
    return why


def kind_by_name(gene: str, name: str = "") -> str:
    """Return what id or name say that a row is instead of a gene: spike-in, peak …; "" if they say nothing of it."""
    if is_ensembl_gene(gene):
        return ""
    if _UNNAMED.match(gene):
        return "unnamed"
    telling = [text for text in (gene, name) if text and not _SAYS_NOTHING.match(text)]
    return next((why for why, pattern in _NAMED.items() if any(map(pattern.match, telling))), "")


def genomes_of(var: "pd.DataFrame", ids: Sequence[str]) -> tuple[str, ...]:
    """Return the genome of each row, by the column ``genome`` or the beginning of its id; "" where neither says it."""
    return tuple(texts(var["genome"]) if "genome" in var else map(genome_in, ids))
