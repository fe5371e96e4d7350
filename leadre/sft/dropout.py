"""Dropout for decoders that have none: a small model that reads the same histories often learns them by heart."""

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


def drop_out(model: PreTrainedModel, share: float) -> list[RemovableHandle]:
    """Drop a share of what the embeddings, each attention and each perceptron add to the stream, in training mode.

    The residual and embedding dropout of Vaswani 2017, 5.4. It draws from PyTorch's global generator.

    Args:
        model: A decoder as Transformers builds them: ``layers`` that have ``self_attn`` and ``mlp``.
        share: Above 0 and below 1.

    Returns:
        What takes it off again.

    Raises:
        ValueError: If the model has no such layers.
    """
    layers = getattr(model.base_model, "layers", None)
    if layers is None or not all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in layers):
        raise ValueError(
            f"sft.tuning.dropout is {share}, but a {model.config.model_type} has no layers of self_attn and mlp to "
            "drop from: use sft.tuning.dropout=0"
        )

    def dropped(module: nn.Module, _: Any, output: Any) -> Any:  # noqa: ANN401  # attentions give tuples
        if isinstance(output, tuple):
            return functional.dropout(output[0], share, module.training), *output[1:]
        return functional.dropout(cast(Tensor, output), share, module.training)

    parts = [model.get_input_embeddings(), *(part for layer in layers for part in (layer.self_attn, layer.mlp))]
    return [part.register_forward_hook(dropped) for part in parts]
