# ruff: noqa: ANN001, ANN202, N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Triton kernels around 8-bit products, whose twins are in `leadre.lm.quantized`: one pass instead of six.

Triton's language has its own types and writes constants in capitals, which the two lines above allow.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_WARPS = 8


def quantize_rows(x: Tensor, smooth: Tensor | None, dtype: torch.dtype, largest: float) -> tuple[Tensor, Tensor]:
    """`leadre.lm.quantized.quantize_rows`, one program a row."""
    rows, columns = x.shape
    made = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = min(_BLOCK, triton.next_power_of_2(columns))
    with torch.cuda.device_of(x):  # Triton works on the current device
        _quantize_rows[(rows,)](
            x,
            scales if smooth is None else smooth,  # not read where there is none
            made,
            scales,
            x.stride(0),
            x.stride(1),
            columns,
            LARGEST=largest,
            SMOOTH=smooth is not None,
            INTEGER=dtype == torch.int8,
            BLOCK=block,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return made, scales


def rescale(product: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """`leadre.lm.quantized.rescale`, one program a part of a row."""
    made = torch.empty(product.shape, dtype=dtype, device=product.device)
    block = min(_BLOCK, triton.next_power_of_2(product.shape[1]))
    grid = (product.shape[0], triton.cdiv(product.shape[1], block))
    with torch.cuda.device_of(product):
        _rescale[grid](
            product,
            rows,
            columns,
            made,
            product.stride(0),
            product.shape[1],
            BLOCK=block,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return made


@triton.jit
def _quantize_rows(
    x,
    smooth,
    made,
    scales,
    row_stride,
    column_stride,
    columns,
    LARGEST: tl.constexpr,
    SMOOTH: tl.constexpr,
    INTEGER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    high = 1.1754943508222875e-38
    for start in range(0, columns, BLOCK):
        column = start + lane
        inside = column < columns
        values = tl.load(x + row * row_stride + column * column_stride, mask=inside, other=0.0).to(tl.float32)
        if SMOOTH:
            values = values * tl.load(smooth + column, mask=inside, other=0.0)
        sizes = tl.where(values != values, float("inf"), tl.abs(values))  # so that NaN ends as NaN
        high = tl.maximum(high, tl.max(sizes, 0))
    scale = tl.maximum(high / LARGEST, 1.1754943508222875e-38)
    tl.store(scales + row, scale)
    for start in range(0, columns, BLOCK):
        column = start + lane
        inside = column < columns
        values = tl.load(x + row * row_stride + column * column_stride, mask=inside, other=0.0).to(tl.float32)
        if SMOOTH:
            values = values * tl.load(smooth + column, mask=inside, other=0.0)
        values = values / scale
        if INTEGER:
            values = tl.floor(values + 0.5)
        values = tl.minimum(tl.maximum(values, -LARGEST), LARGEST)
        tl.store(made + row * columns + column, values.to(made.dtype.element_ty), mask=inside)


@triton.jit
def _rescale(product, rows, columns, made, row_stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    values = tl.load(product + row * row_stride + column, mask=inside, other=0).to(tl.float32)
    values = values * tl.load(rows + row) * tl.load(columns + column, mask=inside, other=0.0)
    tl.store(made + row * size + column, values.to(made.dtype.element_ty), mask=inside)
