"""Linear layers in 8-bit numbers: integers with SmoothQuant (w8a8), or floats (fp8) (LEADRE 4.4.2; Xiao 2023)."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from leadre.lm.config import EightBit

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_ALPHA = 0.5
"""How much of an activation's range is moved into the weights (Xiao 2023, eq. 4)."""
_FEWEST_ROWS = 32
"""Products of 8-bit integers on a GPU take no fewer than 17 rows."""
_TRITON = find_spec("triton") is not None


def quantize(model: PreTrainedModel, weights: EightBit, calibration: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Turn the linear layers of a model's body into 8-bit ones, in place; its embeddings and its head stay.

    Weights get a scale for each output, activations one for each token as they come. ``w8a8`` first moves outliers of
    the activations into the weights, channel by channel, as SmoothQuant does; ``fp8`` (e4m3) needs no calibration.

    Our choice: the paper's 8-bit cache (the c8 of "w8a8c8") is left out, since no attention of PyTorch reads one:
    keys and values would be written in 8 bits and copied back into 16 at every step.

    Args:
        model: Any causal language model, in evaluation mode.
        weights: ``w8a8`` or ``fp8``.
        calibration: Batches of prompts ``(B, T)`` on the model's device and their masks, which the ranges of the
            activations are taken from; padding does not count.

    Raises:
        ValueError: If ``weights`` is not known, an adapter is not merged, the body has no linear layer (it may be
            quantized already), or ``w8a8`` has no prompt to be calibrated on.
    """
    if weights not in get_args(EightBit):
        raise ValueError(f"weights is {weights!r}: choose {' or '.join(get_args(EightBit))}")
    decoder: nn.Module = cast(Any, model).get_decoder()
    _check_merged(decoder)
    layers = {name: layer for name, layer in decoder.named_modules() if type(layer) is nn.Linear}
    if not layers:
        raise ValueError(
            f"model is a {type(model).__name__} without linear layers in its body: it may be quantized already; "
            "load it anew"
        )
    with torch.no_grad():
        ranges = _input_ranges(decoder, layers, calibration) if weights == "w8a8" else {}
        for name, layer in layers.items():
            made = Int8Linear(layer, smoothing(ranges[name], layer.weight)) if weights == "w8a8" else Fp8Linear(layer)
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, made)


class Int8Linear(nn.Module):
    """A linear layer whose product is made of 8-bit integers.

    Args:
        layer: The layer it stands for, ``(N, K)``.
        smooth: ``(K,)`` what each input is divided by, and the weights are multiplied with.
    """

    weight: Tensor
    scale: Tensor
    smooth: Tensor

    def __init__(self, layer: nn.Linear, smooth: Tensor) -> None:
        super().__init__()
        weight, scale = quantize_rows(layer.weight.float() * smooth, None, torch.int8)
        self.register_buffer("weight", weight)  # (N, K) int8
        self.register_buffer("scale", scale)  # (N,) float32
        self.register_buffer("smooth", smooth.float().reciprocal())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., K)`` to ``(..., N)``, in the data type of ``x``."""
        rows = x.reshape(-1, x.shape[-1])
        given, scale = quantize_rows(rows, self.smooth, torch.int8)
        made = rescale(int8_product(given, self.weight), scale, self.scale, x.dtype)
        return _shaped(made, x, self.bias)


class Fp8Linear(nn.Module):
    """A linear layer whose product is made of 8-bit floats (e4m3).

    Args:
        layer: The layer it stands for, ``(N, K)``.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(layer.weight, None, torch.float8_e4m3fn)
        self.register_buffer("weight", weight)  # (N, K) float8
        self.register_buffer("scale", scale)  # (N,) float32
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., K)`` to ``(..., N)``, in the data type of ``x``."""
        given, scale = quantize_rows(x.reshape(-1, x.shape[-1]), None, torch.float8_e4m3fn)
        return _shaped(fp8_product(given, scale, self.weight, self.scale, x.dtype), x, self.bias)


def smoothing(input_range: Tensor, weight: Tensor) -> Tensor:
    """What each input channel is divided by: ``max|x|^0.5 / max|w|^0.5`` (Xiao 2023, eq. 4).

    Args:
        input_range: ``(K,)`` the largest magnitude of each input.
        weight: ``(N, K)``.

    Returns:
        ``(K,)`` float32; 1 for a channel that is never used.
    """
    weight_range = weight.float().abs().amax(0)
    used = (input_range > 0) & (weight_range > 0)
    made = input_range.pow(_ALPHA) / weight_range.pow(1 - _ALPHA)
    return torch.where(used, made, 1.0)


def quantize_rows(x: Tensor, smooth: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Write each row in 8 bits, with the scale that its largest number asks for.

    Args:
        x: ``(R, K)`` floats.
        smooth: ``(K,)`` float32 what each column is multiplied with before; None leaves it.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.

    Returns:
        ``(R, K)`` of ``dtype``, and float32 scales ``(R,)``: the product of the two is ``x`` nearly.
    """
    if _TRITON and x.is_cuda:
        from leadre.lm import triton_rows

        return triton_rows.quantize_rows(x, smooth, dtype, _LARGEST[dtype])
    values = x.float() if smooth is None else x.float() * smooth
    largest = _LARGEST[dtype]
    scale = values.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / largest
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    made = values / scale[:, None]
    if dtype == torch.int8:
        made = (made + 0.5).floor()
    return made.clamp(-largest, largest).to(dtype), scale


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    """The exact product ``(R, N)`` int32 of ``(R, K)`` and ``(N, K)`` int8."""
    if x.shape[1] % 8 or weight.shape[0] % 8:  # refused on a GPU; wrong on a CPU for one input (PyTorch 2.13)
        return exact_product(x, weight)
    missing = max(0, _FEWEST_ROWS - len(x)) if x.is_cuda else 0
    given = nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
    return torch._int_mm(given, weight.T)[: len(x)]


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """`int8_product` for any shape and device: in float64, which holds these integers exactly."""
    return (x.double() @ weight.double().T).int()


def rescale(product: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """An int32 product ``(R, N)`` times the scales of its rows and columns, as ``dtype``."""
    if _TRITON and product.is_cuda:
        from leadre.lm import triton_rows

        return triton_rows.rescale(product, rows, columns, dtype)
    return (product.float() * rows[:, None] * columns).to(dtype)


def fp8_product(x: Tensor, rows: Tensor, weight: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """The product ``(R, N)`` of ``(R, K)`` and ``(N, K)`` float8, with the scales of each row of both.

    In 8 bits on a GPU that can (compute capability 8.9 on) if sizes are multiples of 16; else what it stands for: the
    product of the numbers in float32.
    """
    fits = x.shape[1] % 16 == 0 and weight.shape[0] % 16 == 0
    if x.is_cuda and fits and torch.cuda.get_device_capability(x.device) >= (8, 9):
        return torch._scaled_mm(
            x,
            weight.T,
            scale_a=rows[:, None],
            scale_b=columns[None],
            out_dtype=torch.bfloat16,  # the only one with scales of rows
            use_fast_accum=True,
        ).to(dtype)
    return ((x.float() * rows[:, None]) @ (weight.float() * columns[:, None]).T).to(dtype)


def _shaped(made: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    made = made.view(*x.shape[:-1], made.shape[1])
    return made if bias is None else made + bias.to(made.dtype)


def _check_merged(decoder: nn.Module) -> None:
    """Refuse adapters, whose small matrices would be rounded apart; PEFT calls what lies below one its base layer."""
    if adapted := [name for name, layer in decoder.named_modules() if hasattr(layer, "base_layer")]:
        raise ValueError(
            f"model has adapters that are not merged at {len(adapted)} layers, such as {adapted[0]}: merge them first, "
            "with model.merge_and_unload()"
        )


def _input_ranges(
    decoder: nn.Module, layers: dict[str, nn.Linear], calibration: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The largest magnitude ``(K,)`` of each layer's inputs, over all tokens of the calibration."""
    ranges: dict[str, Tensor] = {}
    real = torch.zeros(0, dtype=torch.bool)

    def watch(name: str, layer: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found = given[0][real].float().abs().amax(0)
            ranges[name] = torch.maximum(ranges[name], found) if name in ranges else found

        return layer.register_forward_pre_hook(look)

    watches = [watch(name, layer) for name, layer in layers.items()]
    try:
        for input_ids, attention_mask in calibration:
            real = attention_mask.bool()
            positions = (real.cumsum(1) - 1).clamp(min=0)
            decoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
    finally:
        for handle in watches:
            handle.remove()
    if missing := sorted(set(layers) - set(ranges)):
        raise ValueError(
            f"calibration leaves {len(missing)} of {len(layers)} layers without an input, such as {missing[0]}: w8a8 "
            "needs the ranges of the activations; give it prompts"
        )
    return ranges
