import pandas as pd
import pytest

from geneformer_repro.tokenizer.placeholders import warn_of_no_donors


def test_words_for_no_donor_are_named_once_with_their_cells(caplog):
    donors = pd.Series(["d1", "Doublet", "unassigned", "doublet ", None, "AMBIENT", "Doublet"], dtype=object)
    warn_of_no_donors(donors, "donor")
    (said,) = caplog.messages
    assert said == (
        "donor: 5 of 7 cells are called 'Doublet' (2), 'unassigned' (1), 'doublet ' (1), 'AMBIENT' (1), which says "
        "that they have none, and are taken for one of their own. Leave them out (--where 'donor!=Doublet' "
        "'donor!=unassigned' 'donor!=doublet ' 'donor!=AMBIENT'; in Python cells.select) if they are of no donor."
    )


@pytest.mark.parametrize("names", [["d1", "Unknownov", "multi"], [None, None], []], ids=str)
def test_names_of_donors_are_not_spoken_of(names, caplog):
    warn_of_no_donors(pd.Series(names, dtype=object), "donor")
    assert caplog.messages == []
