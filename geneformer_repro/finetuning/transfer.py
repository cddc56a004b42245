"""How a pretrained encoder is transferred: which of its parameters learn, from when on, how fast, or what is added.

Whatever the way, a plain BERT with stock names comes out. Adapters (LoRA) are put on every linear layer of the blocks,
without changing the model's class, so that training, saving and resuming are those of any model; they are added to
the weights at the end. Of the 10.2 million parameters of a V1-10M encoder, rank 16 trains 0.34 million. Quantised
layers (QLoRA) are not part of a run's checkpoints, since they follow from the pretrained weights. With 4 bits the
blocks' matrices take an eighth of their memory, with 8 a quarter; rounding moves normally distributed weights by 9 %
or 0.7 % (root mean square).
"""

import importlib
import logging
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from geneformer_repro.config import ConfigError
from geneformer_repro.errors import MissingExtraError
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.training.config import ParameterGroup

Model = TypeVar("Model", bound=nn.Module)

_ADAPTED = r"bert\.encoder\.layer\.\d+\..*(query|key|value|dense)"
"""Names of the linear layers of the blocks."""


def prepare(model: Model, config: TransferConfig, *, seed: int = 0) -> tuple[Model, list[ParameterGroup]]:
    """Make a model ready to be trained as `config` says.

    Parameters
    ----------
    model
        An encoder ``bert`` with a head. Changed.
    config
        How it is transferred.
    seed
        Of the adapters' initial weights, which change no output.

    Returns
    -------
    The model, of the same class, and all parameters that learn, for `train`; the others require no gradient.

    Raises
    ------
    ConfigError
        As many blocks are to be frozen as there are.
    MissingExtraError
        ``peft`` or ``bitsandbytes`` is not installed.
    """
    n_blocks = len(_encoder(model).layer)
    if config.freeze >= n_blocks:
        raise ConfigError(
            f"freeze is {config.freeze} but the model has {n_blocks} blocks. Give fewer, or strategy='probe' to "
            "train the head alone."
        )
    if config.strategy == "qlora":
        _quantize(model, config.quantize_bits)
    if config.strategy in ("lora", "qlora"):
        _add_adapters(model, config, seed)
    model.requires_grad_(False)
    groups = _groups(model, config)
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    return model, groups


def finished(model: Model) -> Model:
    """Return a prepared model as a plain one: adapters added to the weights, weights as numbers again.

    Its outputs are those of the prepared model, in float32: a quantised weight becomes the number that it stood for,
    and is not rounded again.

    Parameters
    ----------
    model
        What `prepare` made, trained or not. Changed; every parameter requires a gradient again.
    """
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            model.set_submodule(name, _merged(layer))
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


def _encoder(model: nn.Module) -> Any:
    return model.bert.encoder  # type: ignore[union-attr]


def _groups(model: nn.Module, config: TransferConfig) -> list[ParameterGroup]:
    """Return all parameters that learn; the head first, whose learning rate the log tells."""
    named = list(model.named_parameters())
    head = ParameterGroup("head", [weight for name, weight in named if not _is_of_encoder(name)])
    encoder = [weight for name, weight in named if _is_of_encoder(name)]
    downwards = _downwards(model)
    match config.strategy:
        case "full":
            return [head, ParameterGroup("encoder", encoder)]
        case "freeze":
            learning = _encoder(model).layer[config.freeze :]
            return [head, ParameterGroup("encoder", list(learning.parameters()))]
        case "probe":
            return [head]
        case "probe_then_full":
            return [head, ParameterGroup("encoder", encoder, begins=0.5)]
        case "discriminative":
            decay = config.rate_decay
            slower = [group._replace(rate=decay**depth) for depth, group in enumerate(downwards, start=1)]
            return [head, *slower]
        case "gradual":
            n_parts = 1 + len(downwards)
            later = [group._replace(begins=part / n_parts) for part, group in enumerate(downwards, start=1)]
            return [head, *later]
        case _:
            adapters = [weight for name, weight in model.named_parameters() if "lora_" in name]
            return [head, ParameterGroup("adapters", adapters)]


def _is_of_encoder(name: str) -> bool:
    """Whether a weight is of the encoder; a pooler is new, as the rest of a head."""
    return name.startswith("bert.") and not name.startswith("bert.pooler.")


def _downwards(model: nn.Module) -> list[ParameterGroup]:
    """Return the blocks from the top down, then the embeddings."""
    parts = {f"block {i}": block for i, block in enumerate(_encoder(model).layer, start=1)}
    parts = {"embeddings": model.bert.embeddings, **parts}  # type: ignore[union-attr]
    return [ParameterGroup(name, list(part.parameters())) for name, part in reversed(parts.items())]


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"transfer.strategy='lora' and 'qlora' need {module}: pip install 'geneformer-repro[lora]'."
        ) from error


def _add_adapters(model: nn.Module, config: TransferConfig, seed: int) -> None:
    peft = _needed("peft")
    adapters = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_ADAPTED,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(adapters, model)
    model.train(model.training)


def _merged(layer: Any) -> nn.Linear:
    """Make a plain layer of one with an adapter."""
    base = layer.get_base_layer()
    weight = _weight(base) + layer.get_delta_weight("default")
    plain = nn.Linear(base.in_features, base.out_features, device=weight.device)
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.copy_(base.bias)
    return plain.train(layer.training)


def _weight(layer: nn.Linear) -> Tensor:
    """Return the numbers by which a layer multiplies."""
    if type(layer) is nn.Linear:
        return layer.weight
    integrations = _needed("peft.utils.integrations")
    return integrations.dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).float()


def _quantize(model: nn.Module, bits: Literal[4, 8]) -> None:
    """Put quantised layers in the place of the linear layers of the blocks."""
    for block in _encoder(model).layer:
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear:
                block.set_submodule(name, _quantized(layer, bits))


def _quantized(layer: nn.Linear, bits: Literal[4, 8]) -> nn.Module:
    bitsandbytes = _needed("bitsandbytes")
    shape = (layer.in_features, layer.out_features)
    if bits == 4:
        quantized = bitsandbytes.nn.LinearNF4(*shape)
        quantized.support_avx512bf16_for_cpu = False  # else scoring rounds to bfloat16, and training has no gradient
        quantized.register_forward_pre_hook(_compute_as_around)
    else:
        quantized = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False)
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # else a line for each product
    quantized.load_state_dict(layer.state_dict())
    quantized.register_state_dict_post_hook(_leave_out)
    return quantized.train(layer.training).to(layer.weight.device)  # which quantises


def _compute_as_around(layer: Any, inputs: tuple[Tensor]) -> None:
    """Compute in the type of autocast, else float32; by itself a layer keeps to the type of its first input."""
    device = inputs[0].device.type
    layer.compute_type_is_set = True
    layer.compute_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def _leave_out(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
    """Keep a quantised layer out of checkpoints: it does not change, and 8-bit ones cannot be loaded once used."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
