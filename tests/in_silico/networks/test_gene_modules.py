"""Modules: planted ones found, an accident of a seed said to be one."""

import random
import sys

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import InputError, MissingExtraError
from geneformer_repro.in_silico.networks.gene_modules import module_table

pytest.importorskip("igraph", reason="needs the extra [network]")


def _pairs(
    seed: int, *, n_modules: int = 4, size: int = 15, inside: float = 0.5, outside: float = 0.04
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = n_modules * size
    module = np.arange(n) % n_modules
    likely = np.where(module[:, None] == module, inside, outside)
    source, target = np.nonzero((rng.random((n, n)) < likely) & ~np.eye(n, dtype=bool))
    ids = np.array([f"G{i:02d}" for i in range(n)])
    return pd.DataFrame({"source": ids[source], "target": ids[target], "weight": rng.gamma(3, 0.3, len(source))})


@pytest.fixture
def nodes() -> pd.DataFrame:
    ids = pd.Index([f"G{i:02d}" for i in range(60)])
    return pd.DataFrame({"gene_name": ids.str.lower(), "is_source": True}, index=ids)


def test_planted_modules_are_found_and_stable(nodes: pd.DataFrame) -> None:
    table = module_table(_pairs(0), nodes, [_pairs(0).sample(frac=0.9, random_state=i) for i in range(3)])
    planted = table.index.str[1:].astype(int) % 4
    assert pd.crosstab(table["module"], planted).gt(0).sum(1).tolist() == [1, 1, 1, 1]
    assert table["together"].min() == 1
    facts = table.attrs
    assert facts["agreement"] == pytest.approx(1)
    assert facts["agreement_without_donor"] > 0.9
    assert facts["modularity"] > facts["rewired_modularity"]["max"] + 0.2


def test_modules_of_a_random_graph_are_no_more_than_those_of_its_rewirings(nodes: pd.DataFrame) -> None:
    table = module_table(_pairs(1, inside=0.1, outside=0.1), nodes)
    facts = table.attrs
    assert facts["modularity"] == pytest.approx(facts["rewired_modularity"]["mean"], abs=0.06)
    assert facts["agreement"] < 0.7
    assert table["module"].isna().any()  # what seeds disagree on is of no module
    assert facts["agreement_without_donor"] is None


def test_a_gene_is_with_its_module_as_often_as_over_runs_one_by_one(nodes: pd.DataFrame) -> None:
    from geneformer_repro.in_silico.networks.gene_modules import _consensus

    labels = np.array([[0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2], [5, 5, 5, 3, 3, 3, 1], [0, 0, 1, 2, 2, 2, 1]])
    module, together = _consensus(np.repeat(labels, [2, 1, 1, 1], axis=0))
    assert module.isna().tolist() == [False] * 6 + [True]
    assert list(module[:6]) == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(together[:6], [0.9, 0.9, 0.8, 0.9, 0.9, 0.8], rtol=1e-6)


def test_the_same_seed_gives_the_same_modules_and_the_global_state_stays(nodes: pd.DataFrame) -> None:
    state = random.getstate()
    first, again = (module_table(_pairs(2), nodes, n_seeds=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert random.getstate() == state


def test_a_higher_resolution_gives_more_modules(nodes: pd.DataFrame) -> None:
    n_modules = [module_table(_pairs(3), nodes, resolution=r, n_seeds=3).attrs["n_modules"] for r in (0.5, 1.0, 3.0)]
    assert n_modules[0] < n_modules[2]


def test_the_larger_weight_of_both_directions_counts(nodes: pd.DataFrame) -> None:
    pairs = _pairs(0)
    weaker = pairs.rename(columns={"source": "target", "target": "source"}).assign(weight=pairs["weight"].min() / 2)
    both = pd.concat([pairs, weaker])
    pd.testing.assert_frame_equal(module_table(both, nodes, n_seeds=3), module_table(pairs, nodes, n_seeds=3))


def test_what_cannot_be_done_is_refused(nodes: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No pair has a weight above 0"):
        module_table(_pairs(0)[:0], nodes)
    with pytest.raises(InputError, match="found 0 and 1"):
        module_table(_pairs(0), nodes, n_seeds=0)
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(MissingExtraError, match=r"geneformer-repro\[network\]"):
        module_table(_pairs(0), nodes)
