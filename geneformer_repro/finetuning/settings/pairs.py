"""Drug response: networks over pairs of sample and drug, and a study of two screens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from geneformer_repro.config import Section, require, require_types
from geneformer_repro.finetuning.settings.networks import CompareConfig, TransferConfig
from geneformer_repro.finetuning.settings.splits import NewInTest, PairSplitConfig
from geneformer_repro.network_settings import PairModel, PairNetworkConfig, Pooling
from geneformer_repro.tokenizer.measures import Values
from geneformer_repro.training.settings import SeededConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PairTrainConfig(TrainConfig):
    """How to train a network over pairs."""

    epochs: float = 20
    batch_size: int = 512
    """Pairs of a batch, one on each device a step."""
    learning_rate: float = 1e-3
    warmup_steps: float = 0.05
    rates: tuple[float, ...] = ()
    """Learning rates that are tried, of which the best on the validation pairs is kept; none for `learning_rate`
    alone, which is also taken where no pairs choose."""
    drugs_a_step: int | None = 32
    """Of about how many drugs the pairs of a step are, drawn anew each epoch: the fewer, the less is read of drugs, and
    the more alike are the pairs of a step. None draws pairs one by one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(rate > 0 for rate in self.rates), self, "rates", "numbers above 0")
        require(self.drugs_a_step is None or self.drugs_a_step >= 1, self, "drugs_a_step", "at least 1")


@dataclass(frozen=True, kw_only=True)
class PairConfig(SeededConfig):
    """What a network over pairs is, and how it is trained."""

    network: Section[PairNetworkConfig] = Section(PairNetworkConfig)
    """What the network is; of one that goes on from another, that one's holds."""
    training: Section[PairTrainConfig] = Section(PairTrainConfig)
    """How it is trained."""
    transfer: Section[TransferConfig] = Section(TransferConfig)
    """How its encoder takes part in learning; of a network without, "probe" trains the layers after the junction."""
    pooling: Pooling = "mean"
    """How an encoder's vector of a sample is made."""
    replace_head: bool | None = None
    """Whether the output layer of a network that goes on begins anew; None where the measure is another one."""
    refit_scale: bool = False
    """Whether a network that goes on takes each gene's mean and spread from the training samples at hand, as for
    another platform, in place of those that it learned with."""


@dataclass(frozen=True, kw_only=True)
class ResponseCompareConfig(CompareConfig):
    """What stands beside a network of drug response."""

    ablations: bool = False
    """Also train the network with expression dealt out anew among samples, and with structures dealt out anew among
    drugs: what it reaches without what it reads. Takes as long again, twice."""


@dataclass(frozen=True, kw_only=True)
class ResponseConfig(PairConfig):
    """How to learn responses of samples to drugs, and what to compare with.

    See Also
    --------
    finetune_response : Takes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.ResponseConfig(values="expression", network={"model": "conv_nn"}, split={"by": "drug", "folds": 5})
    >>> config.split.by, config.network.model, config.network.residual
    ('drug', 'conv_nn', True)
    """

    measure: str | None = None
    """What a table of responses holds; as for `read_responses`, which has said it already of what it returns."""
    values: Values | None = None
    """What a matrix of samples holds: raw "counts", which become log1p of counts per 10,000; "expression" (TPM, RSEM,
    FPKM, intensities), which becomes log1p; "zscore", or log ratios, as they are. Tokens have said it."""
    log2: bool = False
    """Whether expression is stored as log2(x + 1)."""
    genes: tuple[str, ...] = ()
    """Genes of the matrix that networks and simple methods read, by id or name, such as those that
    `propagation.genes_near_targets` returns; all if there are none here."""
    tissue: str | None = None
    """The obs column with the tissue of each sample, for its means and for ``split.by="tissue"``."""
    split: Section[PairSplitConfig] = Section(PairSplitConfig)
    """Which pairs are trained on, and which are reported."""
    compare: Section[ResponseCompareConfig] = Section(ResponseCompareConfig)
    """What to compare with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        by_tissue = self.split.by == "tissue"
        require(self.tissue is not None or not by_tissue, self, "tissue", 'an obs column with split.by="tissue"')


@dataclass(frozen=True, kw_only=True)
class StudyPairSplitConfig(PairSplitConfig):
    """Which pairs of the target are trained on, which choose rate and epoch, and which are reported."""

    folds: int | Literal["groups"] = 5


@dataclass(frozen=True, kw_only=True)
class ScreenConfig:
    """What is learned of the source, and what its matrix holds."""

    section: ClassVar[str] = "source"
    values: Values | None = None
    """As of the target; None the same."""
    log2: bool = False
    """As of the target."""
    most_pairs: int | None = 50_000
    """Of more pairs so many are drawn; None learns all."""
    epochs: float = 10
    """Passes over these pairs."""
    validation: float = 0.1
    """Share of what is new in the test (samples, or drugs) that chooses the epoch."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.most_pairs is None or self.most_pairs >= 1, self, "most_pairs", "at least 1")
        require(self.epochs > 0, self, "epochs", "above 0")
        require(0 < self.validation < 1, self, "validation", "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class ResponseStudyConfig(ResponseConfig):
    """How networks go from one screen of drug response to another, and what they are compared with.

    See Also
    --------
    transfer_study : Takes it, with two of `ResponseData`.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.ResponseStudyConfig(values="zscore", networks=("conv_nn", "tdnn"), sizes=(0, 10, 100))
    >>> config.uses, config.source.most_pairs, config.network.residual
    (('sample', 'drug'), 50000, True)
    """

    source: Section[ScreenConfig] = Section(ScreenConfig)
    """What is learned of the source."""
    networks: tuple[PairModel, ...] = ("conv_nn", "paccmann", "tdnn")
    """Networks that are compared; the other settings of ``network`` are those of each. "encoder" begins the source with
    an encoder's checkpoint and reads tokens of both screens; from scratch its encoder has random weights, too."""
    uses: tuple[NewInTest, ...] = ("sample", "drug")
    """What is new in the test, one use after the other, in place of ``split.by``."""
    sizes: tuple[int, ...] = (0, 10, 50, 100, 500, 1000, 5000)
    """Pairs of the target that are learned; all are the last. 0 asks networks of the source as they are."""
    steps: int = 300
    """Of every network on the target."""
    split: Section[PairSplitConfig] = Section(StudyPairSplitConfig)
    """How pairs of the target are split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.networks)) == len(self.networks) > 0, self, "networks", "different names, at least one")
        require(len(set(self.uses)) == len(self.uses) > 0, self, "uses", "different ones, at least one")
        require(all(size >= 0 for size in self.sizes), self, "sizes", "numbers of at least 0")
        require(self.steps >= 1, self, "steps", "at least 1")
