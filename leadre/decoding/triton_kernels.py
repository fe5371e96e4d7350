# ruff: noqa: ANN001, ANN202, N803, RUF059
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The fused kernels of a step of the search in Triton (LEADRE 4.4.2); `leadre.decoding.kernels` has their twins.

A program works on the children of one beam, as many as its node has. The W best of a user are found by radix select:
scores become unsigned integers of the same order, and four passes count digits of 8 bits, from the highest on, until
the score of the last place is known. Two more passes count how many children of each beam are kept, and write them.
Nothing is sorted, and nothing of the size of the vocabulary, or of the candidates, is written.

Triton's language has its own types and writes constants in capitals, which the two lines above allow.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from leadre.decoding.branches import Branches
from leadre.decoding.filters import Filter
from leadre.decoding.selection import Frontier

_LARGEST_BLOCK = 1024
_ROW_BLOCK = 4096
_ROW_WARPS = 8


def normalize_rows(logits: Tensor) -> Tensor:
    """`leadre.decoding.kernels.normalize_rows`, one program a row, each logit read once."""
    norms = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    block = min(_ROW_BLOCK, triton.next_power_of_2(logits.shape[1]))
    with torch.cuda.device_of(logits):  # Triton works on the current device
        _normalize_rows[(len(logits),)](
            logits,
            norms,
            logits.stride(0),
            logits.stride(1),
            logits.shape[1],
            BLOCK=block,
            num_warps=_ROW_WARPS,
            enable_fp_fusion=True,
        )
    return norms


def normalize_children(logits: Tensor, nodes: Tensor, branches: Branches, filter: Filter | None) -> Tensor:
    """`leadre.decoding.kernels.normalize_children`, one program a beam."""
    nodes = nodes.contiguous()
    norms = torch.empty(nodes.numel(), dtype=torch.float32, device=logits.device)
    given, options = _candidates(logits, branches, filter)
    with torch.cuda.device_of(logits):
        _normalize_children[(nodes.numel(),)](norms, nodes, *given, nodes.shape[1], enable_fp_fusion=True, **options)
    return norms


def select_children(
    logits: Tensor,
    norms: Tensor,
    frontier: Frontier,
    branches: Branches,
    first_code: int,
    beam_width: int,
    filter: Filter | None,
) -> Frontier:
    """`leadre.decoding.kernels.select_children`, one program a beam, in six passes."""
    users, width = frontier.nodes.shape
    device = logits.device
    nodes, scores = frontier.nodes.contiguous(), frontier.scores.contiguous()
    digits = torch.zeros(users, 4, 256, dtype=torch.int32, device=device)
    counts = torch.empty(users, 2, width, dtype=torch.int32, device=device)
    found = Frontier(
        torch.full((users, beam_width), -1, dtype=torch.int64, device=device),
        torch.full((users, beam_width), -torch.inf, dtype=torch.float32, device=device),
        torch.zeros(users, beam_width, dtype=torch.int64, device=device),
    )
    given, options = _candidates(logits, branches, filter)
    beams = (nodes, scores, norms, *given, width, first_code, beam_width)
    grid = (users * width,)
    with torch.cuda.device_of(logits):
        for number in range(4):
            _count_digits[grid](digits, *beams, PASS=number, enable_fp_fusion=True, **options)
        _count_kept[grid](digits, counts, *beams, enable_fp_fusion=True, **options)
        beams_block = triton.next_power_of_2(width)
        _write_kept[grid](digits, counts, *found, *beams, BEAMS=beams_block, enable_fp_fusion=True, **options)
    return found


def _candidates(logits: Tensor, branches: Branches, filter: Filter | None) -> tuple[tuple[object, ...], dict[str, int]]:
    """The arguments of `_load_children` after the beams, and the options of all kernels that call it."""
    given = (logits, logits.stride(0), logits.stride(1), branches.codes, branches.first_child)
    options = {"BLOCK": min(_LARGEST_BLOCK, triton.next_power_of_2(branches.most))}
    if filter is None:  # what stands for the filter is not read
        return (*given, branches.codes, branches.codes, branches.codes, 0, 0), {**options, "SETS": 0, "SEARCH": 0}
    counts, spent = filter.counts[branches.level].contiguous(), filter.spent[branches.level].contiguous()
    search = len(spent).bit_length()  # halvings until one place among the seen is left
    arguments = (*given, counts, filter.groups.contiguous(), spent, counts.shape[1], len(spent))
    return arguments, {**options, "SETS": 1, "SEARCH": search}


@triton.jit
def _normalize_rows(logits, norms, row_stride, column_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + lane
        address = logits + row * row_stride + column * column_stride
        values = tl.load(address, mask=column < columns, other=float("-inf")).to(tl.float32)
        higher = tl.where(values > high, values, high)  # each lane has sums of its own; a NaN comes in below
        base = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
        total = total * tl.exp(high - base) + tl.exp(values - base)
        high = higher
    top = tl.max(high, 0)
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    norm = base + tl.log(tl.sum(total * tl.exp(high - base), 0))
    norm = tl.where(norm == float("-inf"), -3.4028234663852886e38, norm)  # finite also where no code is possible
    tl.store(norms + row, tl.where(top == float("inf"), float("nan"), norm))


@triton.jit
def _is_open(children, user, valid, allowed, SEARCH: tl.constexpr):
    """`leadre.decoding.filters.alive`."""
    counts, groups, spent, nodes, num_spent = allowed
    group = tl.load(groups + user)
    open_ = tl.load(counts + group * nodes + children, mask=valid, other=0) > 0
    if SEARCH > 0:
        key = user * nodes + children
        low = tl.zeros_like(key)  # the first place whose key is not smaller lies in low .. high
        high = low + num_spent
        for _ in range(SEARCH):
            middle = (low + high) // 2
            found = tl.load(spent + middle, mask=valid & (middle < high), other=0)
            right = (middle < high) & (found < key)
            low = tl.where(right, middle + 1, low)
            high = tl.where(right, high, middle)
        found = tl.load(spent + low, mask=valid & (low < num_spent), other=-1)
        open_ = open_ & (found != key)
    return valid & open_


@triton.jit
def _load_children(
    start, end, beam, user, table, allowed, BLOCK: tl.constexpr, SETS: tl.constexpr, SEARCH: tl.constexpr
):
    """A block of the children of a beam: their nodes, which of them exist and are open, and their logits."""
    logits, row_stride, column_stride, codes, first_code = table
    children = start + tl.arange(0, BLOCK).to(tl.int64)
    valid = children < end
    if SETS > 0:
        valid = _is_open(children, user, valid, allowed, SEARCH)
    code = tl.load(codes + children, mask=valid, other=0).to(tl.int64)
    address = logits + beam * row_stride + (code + first_code) * column_stride
    return children, valid, tl.load(address, mask=valid, other=float("-inf")).to(tl.float32)


@triton.jit
def _range_of_children(node, first_child):
    """First and last + 1; nothing for a dead beam."""
    above = tl.maximum(node, 0)
    start = tl.load(first_child + above).to(tl.int64)
    end = tl.load(first_child + above + 1).to(tl.int64)
    return start, tl.where(node >= 0, end, start)


@triton.jit
def _normalize_children(
    norms,
    beam_nodes,
    logits,
    row_stride,
    column_stride,
    codes,
    first_child,
    counts,
    groups,
    spent,
    nodes,
    num_spent,
    width,
    BLOCK: tl.constexpr,
    SETS: tl.constexpr,
    SEARCH: tl.constexpr,
):
    beam = tl.program_id(0).to(tl.int64)
    user = beam // width
    start, end = _range_of_children(tl.load(beam_nodes + beam), first_child)
    table = (logits, row_stride, column_stride, codes, 0)
    allowed = (counts, groups, spent, nodes, num_spent)
    high = -3.4028234663852886e38  # the smallest float: finite also where no code is possible at all
    total = 0.0
    number = 0
    while start < end:
        children, valid, values = _load_children(start, end, beam, user, table, allowed, BLOCK, SETS, SEARCH)
        higher = tl.maximum(high, tl.max(values, 0))
        total = total * tl.exp(high - higher) + tl.sum(tl.exp(values - higher), 0)
        number += tl.sum(valid.to(tl.int32), 0)
        high = higher
        start += BLOCK
    norm = high + tl.log(tl.where(total < 1.1754943508222875e-38, 1.1754943508222875e-38, total))
    norm = tl.where(high == float("inf"), float("nan"), norm)
    tl.store(norms + beam, tl.where(number == 1, float("inf"), norm))


@triton.jit
def _load_keys(
    start, end, beam, user, scores, norms, table, allowed, BLOCK: tl.constexpr, SETS: tl.constexpr, SEARCH: tl.constexpr
):
    """A block of candidates: nodes, whether each can be kept, scores, and keys: unsigned integers of their order."""
    children, valid, values = _load_children(start, end, beam, user, table, allowed, BLOCK, SETS, SEARCH)
    norm = tl.load(norms + beam)
    score = tl.load(scores + beam) + tl.where(norm == float("inf"), 0.0, values - norm)
    score = tl.where(score == 0.0, 0.0, score)  # not two zeros
    bits = score.to(tl.uint32, bitcast=True)
    negative = (bits >> 31) == 1
    keys = tl.where(negative, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)
    keys = tl.where(score != score, 0xFFFFFFFF, keys)  # NaN is above all
    return children, valid & (score != float("-inf")), score, keys


@triton.jit
def _bar(digits, user, beam_width, PASSES: tl.constexpr):
    """What the first passes have found: the bar's leading digits, and how many places are left at them."""
    bins = tl.arange(0, 256)
    prefix = tl.zeros((), tl.uint32)
    places = tl.zeros((), tl.int32) + beam_width
    for number in tl.static_range(PASSES):
        histogram = tl.load(digits + user * 1024 + number * 256 + bins)
        at_least = tl.sum(histogram, 0) - tl.cumsum(histogram, 0) + histogram
        digit = tl.max(tl.where(at_least >= places, bins, 0), 0)  # 0 where there are fewer than places
        places -= tl.sum(tl.where(bins > digit, histogram, 0), 0)
        prefix = (prefix << 8) | digit.to(tl.uint32)
    return prefix, places


@triton.jit
def _count_digits(
    digits,
    beam_nodes,
    scores,
    norms,
    logits,
    row_stride,
    column_stride,
    codes,
    first_child,
    counts,
    groups,
    spent,
    nodes,
    num_spent,
    width,
    first_code,
    beam_width,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
    SETS: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """Count the digits of this pass among the user's candidates that have the bar's digits before it."""
    beam = tl.program_id(0).to(tl.int64)
    user = beam // width
    prefix, places = _bar(digits, user, beam_width, PASS)
    start, end = _range_of_children(tl.load(beam_nodes + beam), first_child)
    table = (logits, row_stride, column_stride, codes, first_code)
    allowed = (counts, groups, spent, nodes, num_spent)
    bins = tl.arange(0, 256)
    while start < end:
        children, valid, score, keys = _load_keys(
            start, end, beam, user, scores, norms, table, allowed, BLOCK, SETS, SEARCH
        )
        if PASS > 0:
            valid = valid & ((keys >> (32 - 8 * PASS)) == prefix)
        digit = ((keys >> (24 - 8 * PASS)) & 255).to(tl.int32)
        histogram = tl.histogram(digit, 256, mask=valid)
        tl.atomic_add(digits + user * 1024 + PASS * 256 + bins, histogram, mask=histogram > 0)
        start += BLOCK


@triton.jit
def _count_kept(
    digits,
    kept,
    beam_nodes,
    scores,
    norms,
    logits,
    row_stride,
    column_stride,
    codes,
    first_child,
    counts,
    groups,
    spent,
    nodes,
    num_spent,
    width,
    first_code,
    beam_width,
    BLOCK: tl.constexpr,
    SETS: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """Count each beam's candidates above the bar, and those at it."""
    beam = tl.program_id(0).to(tl.int64)
    user = beam // width
    bar, places = _bar(digits, user, beam_width, 4)
    start, end = _range_of_children(tl.load(beam_nodes + beam), first_child)
    table = (logits, row_stride, column_stride, codes, first_code)
    allowed = (counts, groups, spent, nodes, num_spent)
    above = 0
    level = 0
    while start < end:
        children, valid, score, keys = _load_keys(
            start, end, beam, user, scores, norms, table, allowed, BLOCK, SETS, SEARCH
        )
        above += tl.sum((valid & (keys > bar)).to(tl.int32), 0)
        level += tl.sum((valid & (keys == bar)).to(tl.int32), 0)
        start += BLOCK
    place = kept + user * 2 * width + beam % width
    tl.store(place, above)
    tl.store(place + width, level)


@triton.jit
def _write_kept(
    digits,
    kept,
    found_nodes,
    found_scores,
    found_parents,
    beam_nodes,
    scores,
    norms,
    logits,
    row_stride,
    column_stride,
    codes,
    first_child,
    counts,
    groups,
    spent,
    nodes,
    num_spent,
    width,
    first_code,
    beam_width,
    BEAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    SETS: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """Write each beam's kept candidates behind those of the beams before it."""
    beam = tl.program_id(0).to(tl.int64)
    user = beam // width
    bar, places = _bar(digits, user, beam_width, 4)
    earlier = tl.arange(0, BEAMS)
    before = earlier < beam % width
    above = tl.sum(tl.load(kept + user * 2 * width + earlier, mask=before, other=0), 0)
    level = tl.sum(tl.load(kept + user * 2 * width + width + earlier, mask=before, other=0), 0)
    start, end = _range_of_children(tl.load(beam_nodes + beam), first_child)
    table = (logits, row_stride, column_stride, codes, first_code)
    allowed = (counts, groups, spent, nodes, num_spent)
    while start < end:
        children, valid, score, keys = _load_keys(
            start, end, beam, user, scores, norms, table, allowed, BLOCK, SETS, SEARCH
        )
        is_above = (valid & (keys > bar)).to(tl.int32)
        is_level = (valid & (keys == bar)).to(tl.int32)
        above_here = above + tl.cumsum(is_above, 0)  # up to and with each candidate
        level_here = level + tl.cumsum(is_level, 0)
        chosen = (is_above > 0) | ((is_level > 0) & (level_here <= places))
        slot = above_here + tl.minimum(level_here, places) - 1
        address = user * beam_width + slot
        tl.store(found_nodes + address, children, mask=chosen)
        tl.store(found_scores + address, score, mask=chosen)
        tl.store(found_parents + address, tl.zeros_like(children) + beam % width, mask=chosen)
        above += tl.sum(is_above, 0)
        level += tl.sum(is_level, 0)
        start += BLOCK
