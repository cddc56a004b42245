"""Batches of expression brought to one scale, by what training samples say alone.

A correction that sees the test samples gives away what it is to be tested on, so `Harmoniser.fit` takes the training
samples, and `Harmoniser.apply` treats each row by itself: what the others beside it are changes nothing. Three of the
four methods come to one scale and one shift a batch and gene; "quantile" to one distribution that all samples take.

ComBat is the published one, whose priors lie across the genes of a batch, to the iteration at which it stops. Libraries
that apply ComBat to new samples either want all batches among them or put the priors across batches; those that compute
the published one correct only what they were fitted on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from geneformer_repro.arguments import typed
from geneformer_repro.errors import DataFormatError, InputError, did_you_mean, listed
from geneformer_repro.files import new_file
from geneformer_repro.tokenizer.labels import as_labels

_FORMAT = "geneformer_repro/harmoniser/1"
_METHODS = ("standardise", "quantile", "combat", "reference")
_UNSEEN = ("refuse", "reference")
_CONVERGED = 1e-4
"""Relative change at which ComBat's iteration stops, as published."""


@dataclass(frozen=True, eq=False)
class Harmoniser:
    """How samples of each batch are brought to one scale; made by `Harmoniser.fit` of training samples.

    Parameters
    ----------
    method
        "standardise", "quantile", "combat" or "reference".
    batches
        Names of the batches it was fitted on, sorted.
    on_unseen
        "refuse", or "reference": what becomes of a sample of another batch.
    arrays
        What was fitted, float64: of "quantile" ``distribution`` (a value a gene, ascending); of the others ``scale``
        and ``shift`` (batches × genes, with a last row for batches that are not among them).

    See Also
    --------
    read_samples : Samples with what is known of their patients.
    integration_scores : How far vectors keep labels apart and batches together.

    Examples
    --------
    >>> import numpy as np
    >>> import geneformer_repro as gf
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(60, 200))
    >>> platform = np.repeat(["array", "sequencing"], 30)
    >>> values[platform == "array"] += 3
    >>> harmoniser = gf.Harmoniser.fit(values[:50], platform[:50], method="combat")
    >>> new = harmoniser.apply(values[50:], platform[50:])
    >>> bool(abs(new.mean() - harmoniser.apply(values[:30], platform[:30]).mean()) < 0.1)
    True
    """

    method: str
    batches: tuple[str, ...]
    on_unseen: str
    arrays: dict[str, np.ndarray]

    @classmethod
    @typed
    def fit(
        cls,
        values: np.ndarray,
        batches: Sequence[Any] | np.ndarray,
        *,
        method: Literal["standardise", "quantile", "combat", "reference"] = "standardise",
        reference: str | None = None,
        on_unseen: Literal["refuse", "reference"] = "refuse",
    ) -> "Harmoniser":
        """Learn from training samples how each batch is brought to one scale.

        Parameters
        ----------
        values
            Expression of the training samples, samples × genes, on a scale on which a sum makes sense (log2 of TPM or
            intensities, not counts); finite.
        batches
            Batch of each sample (cohort, platform, run).
        method
            "standardise": each gene less its mean in the batch, by its standard deviation there (with the number of
            samples below), so that genes are in z-scores. "reference": shifted and scaled so that its mean and
            deviation are those of the batch `reference`, whose samples stay as they are. "combat": the same to the
            moments of all batches, with shifts and scales shrunk, a batch at a time, towards what genes have in common
            there (parametric empirical Bayes; without covariates). A gene without spread in its batch (in "combat": in
            all) becomes the mean it is brought to. Of one batch alone, "combat" changes nothing. "quantile": each
            sample's values, in their order, become the mean over the training samples of the value at that rank; genes
            of equal value the mean over theirs. The batch does not matter to it.
        reference
            Batch of "reference".
        on_unseen
            What `apply` does with a batch that is not among these. "refuse", or "reference": treats it as it would the
            training samples as one batch: "standardise" by their means and deviations; "combat" and "reference" leave
            it as it is; "quantile" as any other.

        Raises
        ------
        InputError
            A value is not finite, a sample has no batch, batches are not as many as samples; `reference` is not a batch
            or is missing; or, except for "quantile", a batch has a single sample. "combat" needs two genes.

        See Also
        --------
        Harmoniser.apply : Applies it.

        References
        ----------
        Johnson, Li and Rabinovic, Biostatistics 8, 118 (2007), ComBat; Bolstad et al., Bioinformatics 19, 185 (2003),
        quantiles.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> values = np.array([[1.0, 5.0], [3.0, 9.0], [2.0, 2.0], [4.0, 6.0]])
        >>> harmoniser = gf.Harmoniser.fit(values, ["A", "A", "B", "B"], method="reference", reference="A")
        >>> harmoniser.apply(values, ["A", "A", "B", "B"])
        array([[1., 5.],
               [3., 9.],
               [1., 5.],
               [3., 9.]])
        """
        for choice, choices in ((method, _METHODS), (on_unseen, _UNSEEN)):
            if choice not in choices:
                raise InputError(f"{choice!r} is not a choice. {did_you_mean(choice, choices)}")
        names, codes = _fitted_batches(values, batches)
        if (reference is not None) != (method == "reference"):
            raise InputError(f"method={method!r} with reference={reference!r}: a batch is named for 'reference' alone.")
        if reference is not None and reference not in names:
            raise InputError(f"There is no batch {reference!r} to be the reference. {did_you_mean(reference, names)}")
        values = values.astype(np.float64)
        if method == "quantile":
            return cls(method, tuple(names), on_unseen, {"distribution": np.sort(values, axis=1).mean(axis=0)})
        _require_two_samples(codes, names, method)
        if method == "combat":
            scale, shift = _combat(values, codes)
        else:
            scale, shift = _moment_matching(values, codes, None if reference is None else names.index(reference))
        return cls(method, tuple(names), on_unseen, {"scale": scale, "shift": shift})

    @property
    def n_genes(self) -> int:
        """Number of genes that it was fitted on."""
        return next(iter(self.arrays.values())).shape[-1]

    @typed
    def apply(self, values: np.ndarray, batches: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Bring samples to the scale of the training samples, each by itself.

        Parameters
        ----------
        values
            Expression, samples × genes; the genes, and their order, are those that it was fitted on.
        batches
            Batch of each sample.

        Returns
        -------
        Samples × genes, float64.

        Raises
        ------
        InputError
            The number of genes is another, a value is not finite, a sample has no batch, or one that the training
            samples had not, unless `on_unseen` is "reference".

        See Also
        --------
        Harmoniser.fit : Learns it from training samples.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> values = np.random.default_rng(0).normal(size=(20, 5))
        >>> harmoniser = gf.Harmoniser.fit(values, ["A"] * 10 + ["B"] * 10, on_unseen="reference")
        >>> harmoniser.apply(values[:3], ["A", "B", "another"]).shape
        (3, 5)
        """
        labels = _labels(values, batches)
        if values.shape[1] != self.n_genes:
            raise InputError(
                f"Fitted on {self.n_genes:,} genes, found {values.shape[1]:,}; give the same, in their order."
            )
        codes = pd.Index(self.batches).get_indexer(pd.Index(labels))
        unseen = sorted({label for label, code in zip(labels, codes, strict=True) if code < 0})
        if unseen and self.on_unseen == "refuse":
            raise InputError(
                f"{len(unseen)} batches were not among the training samples (first: {unseen[0]!r}; they had "
                f"{listed(map(repr, self.batches))}), so how far they are off is not known. Fit with samples of "
                "them, or with on_unseen='reference'."
            )
        if self.method == "quantile":
            rows = [_of_ranks(row, self.arrays["distribution"]) for row in values]
            return np.array(rows, dtype=np.float64).reshape(values.shape)
        return values * self.arrays["scale"][codes] + self.arrays["shift"][codes]

    @typed
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it as a safetensors file.

        Parameters
        ----------
        path
            The file.
        overwrite
            Replace a file that is there.

        See Also
        --------
        Harmoniser.load : Reads it.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.Harmoniser.fit(np.eye(4), ["A", "A", "B", "B"], method="quantile").save("harmoniser.safetensors")
        """
        about = {"method": self.method, "batches": self.batches, "on_unseen": self.on_unseen}
        with new_file(path, overwrite=overwrite) as aside:
            aside.write_bytes(save(self.arrays, {"format": _FORMAT, "harmoniser": json.dumps(about)}))

    @classmethod
    @typed
    def load(cls, path: str | Path) -> "Harmoniser":
        """Read what `save` wrote.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        InputError
            There is no such file.
        DataFormatError
            It is damaged, or is no harmoniser of this version.

        See Also
        --------
        Harmoniser.save : Writes it.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.Harmoniser.fit(np.eye(4), ["A", "A", "B", "B"], method="quantile").save("harmoniser.safetensors")
        >>> gf.Harmoniser.load("harmoniser.safetensors").batches
        ('A', 'B')
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file.")
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(metadata["harmoniser"]) if metadata.get("format") == _FORMAT else {}
            harmoniser = cls(about["method"], tuple(about["batches"]), about["on_unseen"], arrays)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataFormatError(f"{path}: not a harmoniser ({_FORMAT}), or damaged; fit it anew.") from error
        harmoniser._require_form(path)
        return harmoniser

    def _require_form(self, path: str | Path) -> None:
        n_rows, quantile = len(self.batches) + 1, self.method == "quantile"
        wanted = {"distribution": 1} if quantile else {"scale": 2, "shift": 2}
        fits = {name: array.ndim for name, array in self.arrays.items()} == wanted and all(
            array.dtype == np.float64 and np.isfinite(array).all() and (quantile or array.shape[0] == n_rows)
            for array in self.arrays.values()
        )
        if not fits or self.method not in _METHODS or self.on_unseen not in _UNSEEN:
            raise DataFormatError(f"{path}: a harmoniser whose parts do not fit each other; fit it anew.")


def _labels(values: np.ndarray, batches: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Return the name of each sample's batch.

    Raises
    ------
    InputError
        A value is not finite, or a batch is missing.
    """
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"Expected numbers, samples × genes, found {values.dtype} of shape {values.shape}.")
    if len(batches) != len(values):
        raise InputError(f"{len(values)} samples and {len(batches)} batches; give each sample the one that it is of.")
    if not np.isfinite(values).all():
        i, j = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"Sample {i}, gene {j} is {values[i, j]}; leave out what is missing, or fill it, before.")
    labels = as_labels(pd.Series(list(batches), name="batches"))
    if labels.isna().any():
        raise InputError(f"{labels.isna().sum()} samples have no batch (first: sample {labels.isna().argmax()}).")
    return labels.to_numpy()


def _fitted_batches(values: np.ndarray, batches: Sequence[Any] | np.ndarray) -> tuple[list[str], np.ndarray]:
    codes, names = pd.factorize(_labels(values, batches), sort=True)
    if not values.size:
        raise InputError(f"No training samples, or no genes: found {values.shape[0]} × {values.shape[1]} values.")
    return [str(name) for name in names], codes


def _require_two_samples(codes: np.ndarray, names: Sequence[str], method: str) -> None:
    single = [name for name, n in zip(names, np.bincount(codes), strict=True) if n < 2]
    if single:
        raise InputError(
            f"{len(single)} batches have one training sample (first: {single[0]!r}), and how far values spread there "
            f"is not known; method={method!r} needs two of each. Leave it out, or take method='quantile'."
        )


def _means_and_deviations(values: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both (batches × genes), with a last row over all samples."""
    parts = [values[codes == code] for code in range(codes.max() + 1)] + [values]
    means = np.stack([part.mean(axis=0) for part in parts])
    deviations = np.stack([part.std(axis=0) for part in parts])
    for part, deviation in zip(parts, deviations, strict=True):
        deviation[(part == part[0]).all(axis=0)] = 0  # what is constant may differ from its mean by rounding
    return means, deviations


def _moment_matching(values: np.ndarray, codes: np.ndarray, reference: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift to mean 0 and deviation 1, or to those of a batch, which then stays as it is."""
    means, deviations = _means_and_deviations(values, codes)
    mean, deviation = (0.0, 1.0) if reference is None else (means[reference], deviations[reference])
    scale = np.divide(deviation, deviations, out=np.zeros_like(deviations), where=deviations > 0)
    shift = mean - means * scale
    if reference is not None:
        scale[[reference, -1]], shift[[reference, -1]] = 1.0, 0.0
    return scale, shift


def _combat(values: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift of each batch by parametric empirical Bayes across genes, and 1 and 0 for any other."""
    n_B = np.bincount(codes)
    scale_BG, shift_BG = np.ones((len(n_B) + 1, values.shape[1])), np.zeros((len(n_B) + 1, values.shape[1]))
    if len(n_B) == 1:
        return scale_BG, shift_BG
    means_BG, deviations_BG = (array[:-1] for array in _means_and_deviations(values, codes))
    mean_G, pooled_G = n_B @ means_BG / n_B.sum(), np.sqrt(n_B @ deviations_BG**2 / n_B.sum())
    spreads = pooled_G > 0
    if spreads.sum() < 2:
        raise InputError(f"{spreads.sum()} genes spread within batches; 'combat' needs two, to see what they share.")
    scale_BG[:-1, ~spreads], shift_BG[:-1, ~spreads] = 0.0, mean_G[~spreads]
    mean_G, pooled_G = mean_G[spreads], pooled_G[spreads]
    for batch, n in enumerate(n_B):
        gamma = (means_BG[batch, spreads] - mean_G) / pooled_G
        delta = (deviations_BG[batch, spreads] / pooled_G) ** 2 * n / (n - 1)
        gamma, delta = _shrunk(gamma, delta, n)
        scale_G = np.divide(1.0, np.sqrt(delta), out=np.zeros_like(delta), where=delta > 0)
        scale_BG[batch, spreads] = scale_G
        shift_BG[batch, spreads] = mean_G * (1 - scale_G) - gamma * scale_G * pooled_G
    return scale_BG, shift_BG


def _shrunk(gamma: np.ndarray, delta: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the posterior shift and variance of each gene of a batch of `n` samples.

    The prior of the shifts is normal, that of the variances inverse gamma, both by the moments over the batch's genes.
    """
    prior_mean, prior_variance, mean, variance = gamma.mean(), gamma.var(), delta.mean(), delta.var(ddof=1)
    if variance == 0:  # then the prior holds them all
        return _posterior_shift(gamma, delta, n, prior_mean, prior_variance), delta
    a, b = (2 * variance + mean**2) / variance, (mean * variance + mean**3) / variance
    shift, spread, change = gamma, delta, np.inf
    while change > _CONVERGED:
        new_shift = _posterior_shift(gamma, spread, n, prior_mean, prior_variance)
        squares = (n - 1) * delta + n * (gamma - new_shift) ** 2
        new_spread = (squares / 2 + b) / (n / 2 + a - 1)
        change = max(_relative_change(new_shift, shift), _relative_change(new_spread, spread))
        shift, spread = new_shift, new_spread
    return shift, spread


def _posterior_shift(gamma: np.ndarray, delta: np.ndarray, n: int, mean: float, variance: float) -> np.ndarray:
    return (variance * n * gamma + delta * mean) / (variance * n + delta)


def _relative_change(new: np.ndarray, old: np.ndarray) -> float:
    # by a value with its sign, as published: ComBat would stop at another iteration, and by 1e-5 elsewhere, without it
    return float(np.divide(abs(new - old), old, out=np.zeros_like(old), where=old != 0).max())


def _of_ranks(row: np.ndarray, distribution: np.ndarray) -> np.ndarray:
    """Return the value of the distribution at the rank of each value, the mean over the ranks of equal ones."""
    order = np.argsort(row, kind="stable")
    ordered = row[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    n_equal = np.diff(np.append(starts, len(row)))
    values = np.empty(len(row))
    values[order] = np.repeat(np.add.reduceat(distribution, starts) / n_equal, n_equal)
    return values
