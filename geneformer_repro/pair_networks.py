"""Networks over pairs of a sample and a drug: a reader of samples, one of drugs, a fusion, and layers for both.

A batch holds each of its samples and drugs once, and pairs as numbers of these: on 250,000 pairs of 950 cell lines and
280 drugs a drug is read some dozen times an epoch, not 900 times, and no matrix of pairs × genes is ever made. What is
learned is by default the *residual* over the mean effects that are known beforehand, and the output layer begins at
zero: so a network begins as that forecast, and of a drug unlike all that it saw falls back on it.

Shapes: S samples, D drugs, P pairs of a batch; G genes, T positions of a SMILES, E length of a character's vector,
H heads of attention, A size of each, W width, K outputs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput

from geneformer_repro.attention import Cells
from geneformer_repro.drug_inputs import DrugScale
from geneformer_repro.encoder import first_tokens, run_encoder, unpad
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionInputs, InputScale
from geneformer_repro.files import misfit, write_json
from geneformer_repro.heads import WEIGHTS, Head, open_network, pool
from geneformer_repro.mean_effects import MeanEffects
from geneformer_repro.network_settings import PairNetworkConfig, PairShape
from geneformer_repro.pair_layers import ContextualAttention, Convolutions, Junction, SideBySide, joint_layers_of, tower
from geneformer_repro.targets import Response

MODEL_TYPE, FORMAT = "pair_network", "geneformer_repro/pair_network/1"
_FORM = {
    "network": {"model": str}, "drugs": {}, "learned": {"samples": [str], "drugs": [str]}, "begun": {},
}  # fmt: skip
"""What ``config.json`` holds, for `files.misfit`."""


class Side(NamedTuple):
    """What is made of samples, or of drugs, before they meet: tensors whose rows are these."""

    vectors: Tensor
    """(rows, W): of a sample or drug; of "attention" what is asked of characters, or the vectors of characters."""
    keys: tuple[Tensor, ...] = ()
    """Of "attention": projections for each width of convolution, of samples (S, H, A), of drugs (D, T, H, A)."""
    channels: tuple[Tensor, ...] = ()
    """Of "attention": vectors of characters (D, T, W) for each width of convolution."""
    length_D: Tensor | None = None
    """Of "attention": how many characters each SMILES has."""


class PairNetwork(nn.Module):
    """A response for each pair of a sample and a drug.

    Parameters
    ----------
    shape
        What it is.
    head
        What its outputs mean.
    scale
        Which genes it reads, and what is usual of them; None of one that reads tokens alone.
    drugs
        What it reads of drugs.
    encoder
        The shape of the encoder, of one that reads tokens.
    seed
        Of its random weights; those of the output are zero where it learns a residual.
    """

    def __init__(
        self,
        shape: PairShape,
        head: Head,
        scale: InputScale | None,
        drugs: DrugScale,
        *,
        encoder: BertConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        assert (scale is not None) == shape.reads_expression
        assert (encoder is not None) == shape.reads_tokens
        self.shape, self.head, self.scale, self.drugs = shape, head, scale, drugs
        self.effects: MeanEffects | None = None
        """Of the training rows, by the names of samples and the keys of drugs; None without `residual`."""
        self.learned: dict[str, list[str]] = {"samples": [], "drugs": []}
        """Names of the samples and keys of the drugs that it, or what it went on from, was trained on."""
        self.begun: dict[str, Any] = {}
        """What it went on from, and whether its output layer was replaced."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._make_layers(encoder)

    @property
    def target(self) -> Response:
        """What it predicts."""
        (target,) = self.head.targets
        assert isinstance(target, Response)
        return target

    def _make_layers(self, encoder: BertConfig | None) -> None:
        shape, n_sample = self.shape, 0
        if encoder is not None:
            self.bert = BertModel(encoder, add_pooling_layer=False)
            unpad(self.bert)
            n_sample = encoder.hidden_size
        if self.scale is not None:
            self.expression_tower = tower(len(self.scale), shape.sample_layers, linear=shape.model == "conv_nn")
            n_sample += [len(self.scale), *shape.sample_layers][-1]
        if shape.fusion == "attention":
            self.characters: Convolutions | SideBySide = SideBySide(shape, self.drugs)
            has_gate = shape.model == "paccmann"
            self.attentions: Any = nn.ModuleList(
                ContextualAttention(n_sample, width, shape, has_gate=has_gate) for width in self.characters.widths
            )
            n_joint = shape.attention_heads * sum(self.characters.widths)
        else:
            self.junction = Junction(shape, n_sample, self._make_drug_reader())
            n_joint = self.junction.width
        self.joint = joint_layers_of(shape, n_joint)
        self.output = self._make_output([n_joint, *shape.joint_layers][-1])

    def _make_drug_reader(self) -> int:
        """Make what reads drugs; return the length of its vectors."""
        if self.drugs.kind == "smiles":
            self.characters = Convolutions(self.shape, self.drugs)
            return self.characters.width
        widths = () if self.drugs.kind == "none" else self.shape.drug_layers
        self.drug_tower = tower(self.drugs.width, widths)
        return [self.drugs.width, *widths][-1]

    def _make_output(self, n_inputs: int) -> nn.Linear:
        output = nn.Linear(n_inputs, self.head.n_outputs)
        if self.shape.residual:
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)
        return output

    def replace_output(self, head: Head, *, seed: int = 0) -> None:
        """Begin the last layer anew, for another measure; at zero where a residual is learned."""
        self.head = head
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.output = self._make_output(self.output.in_features)

    # Each side once a batch

    def pooled(self, input_ids: Tensor, lengths: Sequence[int], weights: Tensor) -> Tensor:
        """Return the encoder's vector of each sample, (S, W), from its tokens end to end (see `Batch.inputs`)."""
        if self.head.first_only:
            return run_encoder(self.bert, input_ids, lengths, read=first_tokens(lengths, input_ids.device))
        return pool(run_encoder(self.bert, input_ids, lengths), weights, Cells(lengths), "mean")

    def of_samples(self, values: Tensor | None = None, pooled: Tensor | None = None) -> Side:
        """Return what is made of samples.

        Parameters
        ----------
        values
            Expression as `scale` returns it, (S, G).
        pooled
            Vectors of the encoder, (S, W).
        """
        there = [
            part for part in (pooled, None if values is None else self.expression_tower(values)) if part is not None
        ]
        vectors_SW = torch.cat(there, dim=-1)
        if self.shape.fusion != "attention":
            return Side(vectors_SW)
        return Side(vectors_SW, tuple(attention.of_samples(vectors_SW) for attention in self.attentions))

    def embedded(self, drugs: Tensor) -> Tensor:
        """Return the vectors of characters, (D, T, E); of other inputs these as they are, (D, F)."""
        return self.characters.embedding(drugs) if self.drugs.kind == "smiles" else drugs

    def of_drugs(self, drugs: Tensor, embedded: Tensor | None = None) -> Side:
        """Return what is made of drugs, as the scale of `drugs` returns them; `embedded` in place of their vectors."""
        embedded = self.embedded(drugs) if embedded is None else embedded
        if self.drugs.kind != "smiles":
            return Side(self.drug_tower(embedded))
        if self.shape.fusion != "attention":
            return Side(self.characters(embedded))
        is_there_DT = drugs > 0
        channels = self.characters(embedded, is_there_DT)
        keys = tuple(of.of_drugs(channel) for of, channel in zip(self.attentions, channels, strict=True))
        return Side(embedded.flatten(1), keys, channels, is_there_DT.sum(1))

    # Pairs

    def outputs(self, samples: Side, drugs: Side, pairs: Tensor, naive: Tensor | None = None) -> Tensor:
        """Return the outputs of pairs, (P, K).

        Parameters
        ----------
        samples, drugs
            What `of_samples` and `of_drugs` made.
        pairs
            Numbers of sample and drug of each pair, (P, 2).
        naive
            Of a network that learns a residual: what mean effects say, in the unit of the measure, (P,).
        """
        sample_P, drug_P = pairs.unbind(1)
        if self.shape.fusion == "attention":
            joined_PW = self._attended(samples, drugs, sample_P, drug_P)
        else:
            joined_PW = self.junction(samples.vectors[sample_P], drugs.vectors[drug_P])
        outputs_PK = self.output(self.joint(joined_PW))
        if not self.shape.residual:
            return outputs_PK
        assert naive is not None, "a residual is over something"
        return outputs_PK + ((naive - self.target.mean) / self.target.sd).to(outputs_PK)[:, None]

    def _attended(self, samples: Side, drugs: Side, sample_P: Tensor, drug_P: Tensor) -> Tensor:
        """Return what samples find in the characters of their drugs, (P, W)."""
        assert drugs.length_D is not None
        of_channels = zip(self.attentions, samples.keys, drugs.keys, drugs.channels, strict=True)
        chosen = [
            attention(asked, keys, channel, drugs.length_D, sample_P, drug_P)
            for attention, asked, keys, channel in of_channels
        ]
        return torch.cat(chosen, dim=-1)

    def shares_of_characters(self, samples: Side, drugs: Side, pairs: Tensor) -> Tensor:
        """Return how much each position of its drug counts where a pair looks at characters, (P, T), of "attention".

        The mean over heads and widths of convolution; of a SMILES it sums to 1. Parameters as of `outputs`.
        """
        assert drugs.length_D is not None
        sample_P, drug_P = pairs.unbind(1)
        of_channels = zip(self.attentions, samples.keys, drugs.keys, strict=True)
        shares = [
            attention.shares(asked, keys, drugs.length_D, sample_P, drug_P).mean(1)
            for attention, asked, keys in of_channels
        ]
        return torch.stack(shares).mean(0)

    def shares_of_genes(self, values: Tensor) -> Tensor | None:
        """Return the shares of PaccMann's gates, (S, G), a mean over widths of convolution; they sum to 1.

        None of a network that has no gates, or whose gates are not of genes but of what layers make of them.
        """
        is_of_genes = self.shape.model == "paccmann" and not self.shape.sample_layers
        if self.shape.fusion != "attention" or not is_of_genes:
            return None
        return torch.stack([attention.gate(values).softmax(-1) for attention in self.attentions]).mean(0)

    def forward(
        self,
        pairs: Tensor,
        drugs: Tensor,
        values: Tensor | None = None,
        input_ids: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        weights: Tensor | None = None,
        pooled: Tensor | None = None,
        naive: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Return ``logits`` (P, K) of pairs and, with `labels`, the loss.

        Parameters
        ----------
        pairs, naive
            As of `outputs`, of the samples and drugs of this batch.
        drugs
            As the scale of `drugs` returns them.
        values, pooled
            As of `of_samples`.
        input_ids, lengths, weights
            As of `pooled`, in place of such vectors.
        labels
            Of each pair, (P, numbers of labels).
        num_items_in_batch
            Labels by whose number the sum of the losses is divided; default those of this batch.
        """
        if input_ids is not None:
            assert lengths is not None and weights is not None  # noqa: PT018
            pooled = self.pooled(input_ids, lengths, weights)
        if self.shape.fusion == "attention":  # reads characters alone, not where they have ended
            drugs = drugs[:, : int((drugs > 0).sum(1).max())]
        logits_PK = self.outputs(self.of_samples(values, pooled), self.of_drugs(drugs), pairs, naive)
        if labels is None:
            return SequenceClassifierOutput(logits=logits_PK)
        n_items = labels.numel() if num_items_in_batch is None else num_items_in_batch
        loss = self.sum_of_losses(logits_PK, labels) / (n_items / self.head.n_labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_PK)

    def sum_of_losses(self, outputs_PK: Tensor, labels_PS: Tensor) -> Tensor:
        """Sum over pairs; a missing label adds nothing."""
        return self.head.targets[0].loss(outputs_PK.float(), labels_PS)

    def num_parameters(self) -> int:
        """Return how many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def scaled(self, inputs: ExpressionInputs) -> np.ndarray:
        """Return expression as the network takes it, (S, G) float32; see `InputScale`."""
        assert self.scale is not None
        return self.scale(with_arcsinh(inputs) if self.shape.arcsinh else inputs)

    # Its files; vocabulary, head and provenance are the checkpoint's

    def described(self) -> dict[str, Any]:
        """Return what ``config.json`` holds: settings, names of what is read, mean effects, and what was learned."""
        scale = self.scale
        encoder = self.bert.config.to_dict() if self.shape.reads_tokens else {}
        encoder.pop("transformers_version", None)
        return {
            "model_type": MODEL_TYPE,
            "format": FORMAT,
            "network": asdict(self.shape),
            "genes": None if scale is None else [list(scale.names["expression"]), list(scale.gene_names)],
            "drugs": self.drugs.to_json(),
            "encoder": encoder,
            "effects": None if self.effects is None else self.effects.to_json(),
            "values": None if scale is None else scale.measure,
            "learned": self.learned,
            "begun": self.begun,
        }

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, scales included."""
        write_json(folder / "config.json", self.described())
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        save_file(weights | {name: torch.from_numpy(values) for name, values in self._scales()}, folder / WEIGHTS)

    def _scales(self) -> list[tuple[str, np.ndarray]]:
        """Return mean and factor of genes and of what is read of drugs, by their names in the file."""
        of_drugs = [("drug_scale.mean", self.drugs.mean_F), ("drug_scale.factor", self.drugs.factor_F)]
        scale = self.scale
        of_genes = [] if scale is None else [("scale.mean", scale.mean_I), ("scale.factor", scale.factor_I)]
        return [(name, np.ascontiguousarray(values, dtype=np.float32)) for name, values in of_genes + of_drugs]

    def deciding(self) -> str:
        """Return all but the weights that decides the outputs, for a fingerprint."""
        digest = hashlib.sha256(b"".join(values.astype("<f4").tobytes() for _, values in self._scales()))
        decides = {name: value for name, value in self.described().items() if name not in ("learned", "begun")}
        return json.dumps([decides, digest.hexdigest()])

    @classmethod
    def load(cls, folder: Path, head: Head | None) -> "PairNetwork":
        """Open a network that `save_pretrained` wrote.

        Raises
        ------
        InputError
            It is of another format, damaged, or has no head.
        """
        return open_network(folder, head, FORMAT, cls._of_files)

    @classmethod
    def _of_files(cls, content: dict[str, Any], head: Head, weights: dict[str, Tensor]) -> "PairNetwork":
        """Make the network of which `described` told; takes the scales out of the weights."""
        if wrong := misfit(content, _FORM):
            raise InputError(wrong)
        shape = PairNetworkConfig(**content["network"]).filled()
        scale = None
        if shape.reads_expression:
            genes, gene_names = (tuple(names) for names in content["genes"])
            mean_I, factor_I = (weights.pop(f"scale.{name}").numpy() for name in ("mean", "factor"))
            if not len(genes) == len(gene_names) == len(mean_I) == len(factor_I):
                raise InputError(f"{len(genes)} genes, {len(gene_names)} names and {len(mean_I)} means")
            scale = InputScale({"expression": genes}, gene_names, mean_I, factor_I, shape.clip, content["values"])
        mean_F, factor_F = (weights.pop(f"drug_scale.{name}").numpy() for name in ("mean", "factor"))
        encoder = BertConfig.from_dict(content["encoder"]) if shape.reads_tokens else None
        network = cls(
            shape, head, scale, DrugScale.from_json(content["drugs"], mean_F, factor_F), encoder=encoder
        ).eval()
        network.load_state_dict(weights)
        network.effects = None if content["effects"] is None else MeanEffects.from_json(content["effects"])
        if shape.residual and network.effects is None:
            raise InputError("it learns a residual, and there are no mean effects")
        network.learned, network.begun = content["learned"], content["begun"]
        return network

    def __repr__(self) -> str:
        return f"PairNetwork({self.shape.model}, drugs as {self.drugs.kind})"


def with_arcsinh(inputs: ExpressionInputs) -> ExpressionInputs:
    """Return the inverse hyperbolic sine of expression."""
    return replace(inputs, values={**inputs.values, "expression": np.arcsinh(inputs.values["expression"])})
