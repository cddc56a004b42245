"""Which rows are trained on, which choose the epoch, and which are reported: of cells, and of pairs by what is new."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from geneformer_repro.config import require, require_types
from geneformer_repro.tokenizer.labels import label_of

if TYPE_CHECKING:
    from geneformer_repro.mean_effects import Effect


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which cells are trained on, which choose the epoch, and which are reported."""

    section: ClassVar[str] = "split"
    may_be_without_validation: ClassVar[bool] = False
    """Whether ``validation`` may be 0: no row chooses the epoch, and the last one is kept."""
    group: str | None = None
    """Obs column whose groups are never split, such as the donor; None splits cell by cell, which flatters
    every method when cells of a donor are alike."""
    folds: int | Literal["groups"] = 1
    """1 reports one part of the cells. From 2 on, so many splits that report every cell once (k-fold);
    "groups" reports each group once (leave one group out)."""
    repeats: int = 1
    """Times that all cells are dealt into `folds`, each time otherwise, so that every cell is reported so often. Where
    rows are few, scores depend on the dealing."""
    validation: float = 0.1
    """Share of the cells that choose the epoch; where the reported cells are named by group or file, the others give
    ``validation / (1 - test)`` of theirs."""
    test: float = 0.2
    """Share of the cells that are reported; k-fold reports 1 / k in each fold."""
    test_groups: tuple[str | int | float | bool, ...] = ()
    """Report exactly these groups, whatever their share; 1015, 1015.0 and "1015" are one."""
    validation_groups: tuple[str | int | float | bool, ...] = ()
    """Choose the epoch on exactly these groups; only together with `test_groups`."""
    balance: tuple[str, ...] = ()
    """Obs columns, such as age or sex, to be distributed alike in all parts: of a hundred random splits the one whose
    smallest p-value is largest is taken."""
    split_file: str | None = None
    """Table with the columns ``cell``, ``part`` (train, validation, test) and, for several splits, ``fold``; of folds
    that are dealt several times also ``repeat``; tabs, commas or semicolons between them. It wins over all other ways;
    without a validation part, that is cut from train."""
    allow_seen: bool = False
    """Also report test cells that the checkpoint was pretrained on (it saw their genes, not their labels); by default
    that is refused."""

    def __post_init__(self) -> None:
        for field in ("test_groups", "validation_groups", "balance"):
            require(not isinstance(getattr(self, field), str), self, field, "a tuple of names")
        require_types(self)
        for field in ("test_groups", "validation_groups"):
            object.__setattr__(self, field, tuple(map(label_of, getattr(self, field))))
        k_fold = isinstance(self.folds, int)
        require(self.folds == "groups" or (k_fold and self.folds >= 1), self, "folds", 'at least 1, or "groups"')
        none = self.may_be_without_validation and self.validation == 0
        require(none or 0 < self.validation < 1, self, "validation", "between 0 and 1")
        require(0 < self.test < 1 - self.validation, self, "test", "between 0 and 1 - validation")
        require(test_share(self) < 1 - self.validation, self, "folds", "more than 1 / (1 - validation)")
        require(self.repeats >= 1, self, "repeats", "at least 1")
        dealt = k_fold and self.folds != 1
        require(dealt or self.repeats == 1, self, "repeats", "1 where the cells are not dealt into folds (folds)")
        self._require_groups_where_needed()

    @property
    def has_groups(self) -> bool:
        """Whether there are groups that are never split."""
        return self.group is not None

    def _require_groups_where_needed(self) -> None:
        named = bool(self.test_groups)
        require(self.has_groups or self.folds != "groups", self, "group", 'a column with folds="groups"')
        require(self.has_groups or not named, self, "group", "a column with test_groups")
        require(self.folds == 1 or not named, self, "folds", "1 with test_groups")
        require(named or not self.validation_groups, self, "validation_groups", "empty without test_groups")
        both = set(self.test_groups) & set(self.validation_groups)
        require(not both, self, "validation_groups", "other than test_groups")
        drawn = not named and self.folds != "groups"
        require(drawn or not self.balance, self, "balance", "empty where the reported groups are named, not drawn")


def test_share(config: SplitConfig) -> float:
    """Return the share of the rows that a split reports."""
    return config.test if isinstance(config.folds, str) or config.folds == 1 else 1 / config.folds


NewInTest = Literal["pair", "sample", "drug", "both", "tissue"]
_KNOWN: "dict[NewInTest, tuple[Effect, ...]]" = {
    "pair": ("sample", "drug"),
    "sample": ("drug",),
    "drug": ("sample",),
    "both": (),
    "tissue": ("drug",),
}


@dataclass(frozen=True, kw_only=True)
class PairSplitConfig(SplitConfig):
    """Which pairs are trained on, which choose the epoch, and which are reported."""

    section: ClassVar[str] = "split"
    by: NewInTest = "sample"
    """What is new in the test: "pair" (both are known, with others), "sample", "drug", "both", or "tissue". `folds`,
    `test` and `validation` are about them: of "both" they are shares of the samples and of the drugs."""

    def __post_init__(self) -> None:
        require(self.by in get_args(NewInTest), self, "by", f"one of {', '.join(get_args(NewInTest))}")
        super().__post_init__()
        require(self.group is None, self, "group", "None; pairs are kept together as split.by says")
        require(not self.balance, self, "balance", "empty; pairs are not balanced on columns")
        one_column = self.by != "both"
        require(one_column or not self.test_groups, self, "test_groups", 'empty with by="both"')
        require(one_column or self.folds != "groups", self, "folds", 'a number with by="both"')

    @property
    def has_groups(self) -> bool:
        """Whether there are groups that can be named: samples, drugs or tissues."""
        return self.by != "pair"

    @property
    def known_effects(self) -> "tuple[Effect, ...]":
        """Of whom in the test the training rows tell a mean response."""
        return _KNOWN[self.by]
