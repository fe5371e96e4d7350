"""A step with static shapes: by hand, against the step of any shape, and in Triton against its twin."""

import ast
import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadre.catalog import trie as tries
from leadre.decoding import filters, kernels, selection
from leadre.decoding.branches import branches
from leadre.decoding.selection import Frontier

SIZES = (4, 6, 5)
EVERY = torch.cartesian_prod(*map(torch.arange, SIZES))


class Step:
    """One step over a random catalog, with ties, impossible codes, dead beams and, at times, NaN and a filter."""

    def __init__(self, seed, level, normalizer, *, filtered=False, broken=False, most_users=3, most_beams=6):
        self.generator = torch.Generator().manual_seed(seed)
        users, beams, ads = self.upto(most_users), self.upto(most_beams), self.upto(len(EVERY))
        sids = EVERY[torch.randperm(len(EVERY), generator=self.generator)[:ads].sort().values]
        self.trie = tries.build(sids)
        self.branches = branches(self.trie)[level]
        self.level, self.normalizer = level, normalizer
        above = 1 if level == 0 else len(self.trie.codes[level - 1])
        beams = min(beams, above)
        nodes = torch.stack(
            [torch.randperm(above, generator=self.generator)[:beams].sort().values for _ in range(users)]
        )
        scores = -torch.randint(0, 4, (users, beams), generator=self.generator).float()
        if level > 0:
            dead = torch.arange(beams) >= torch.randint(0, beams + 1, (users, 1), generator=self.generator)
            nodes, scores = nodes.masked_fill(dead, -1), scores.masked_fill(dead, -torch.inf)
        self.frontier = Frontier(nodes, scores, torch.zeros_like(nodes))
        self.first_code = 10 if normalizer == "full" else 0
        columns = 30 if normalizer == "full" else SIZES[level]
        self.logits = torch.randint(-3, 4, (users * beams, columns), generator=self.generator).float()
        self.logits[self.chance(self.logits.shape, 0.2)] = -torch.inf
        if broken:
            self.logits[self.chance(self.logits.shape, 0.1)] = torch.nan
            self.logits[self.chance(self.logits.shape, 0.1)] = torch.inf
        self.filter = self.some_filter(users, ads) if filtered else None

    def upto(self, most):
        return int(torch.randint(1, most + 1, (1,), generator=self.generator))

    def chance(self, shape, share):
        return torch.rand(shape, generator=self.generator) < share

    def some_filter(self, users, ads):
        counts = filters.counts(self.trie, self.chance((2, ads), 0.7))
        groups = torch.randint(0, 2, (users,), generator=self.generator)
        seen = torch.randint(-1, ads, (users, self.upto(4) - 1), generator=self.generator)
        return filters.make(self.trie, counts, groups, seen)

    def norms(self):
        return kernels.log_normalizer(self.logits, self.frontier.nodes, self.branches, self.normalizer, self.filter)

    def select(self, width):
        return kernels.select(
            self.logits,
            self.norms(),
            self.frontier,
            self.branches,
            first_code=self.first_code,
            beam_width=width,
            filter=self.filter,
        )

    def to(self, device):
        self.branches = self.branches._replace(
            codes=self.branches.codes.to(device), first_child=self.branches.first_child.to(device)
        )
        self.frontier = Frontier(*(part.to(device) for part in self.frontier))
        self.logits = self.logits.to(device)
        if self.filter is not None:
            counts, groups, seen, spent = self.filter
            self.filter = filters.Filter(
                tuple(each.to(device) for each in counts),
                groups.to(device),
                seen.to(device),
                tuple(each.to(device) for each in spent),
            )
        return self


def test_the_best_of_three_by_hand():
    """The root's codes 0, 1 and 2 have the logits 0, log 2 and log 5: probabilities 1/8, 2/8 and 5/8."""
    trie = tries.build(torch.tensor([[0], [1], [2]]))
    (level,) = branches(trie)
    root = Frontier(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    norms = kernels.log_normalizer(logits, root.nodes, level, "trie")
    torch.testing.assert_close(norms, torch.tensor([8.0]).log())
    found = kernels.select(logits, norms, root, level, first_code=0, beam_width=2)
    assert found.nodes.tolist() == [[1, 2]]
    assert found.parents.tolist() == [[0, 0]]
    torch.testing.assert_close(found.scores.exp(), torch.tensor([[0.25, 0.625]]))


def test_a_certain_code_costs_nothing_whatever_its_logit():
    trie = tries.build(torch.tensor([[0, 0], [1, 0], [1, 1]]))
    level = branches(trie)[1]
    beams = Frontier(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]]), torch.zeros(1, 2, dtype=torch.int64))
    logits = torch.tensor([[-torch.inf, 3.0], [0.0, 0.0]])
    norms = kernels.log_normalizer(logits, beams.nodes, level, "trie")
    assert norms[0] == torch.inf
    found = kernels.select(logits, norms, beams, level, first_code=0, beam_width=3)
    torch.testing.assert_close(found.scores, torch.tensor([[-1.0, -2.0 - torch.tensor(2.0).log(), -2.6931472]]))


def test_nan_is_always_kept():
    trie = tries.build(torch.tensor([[0], [1], [2]]))
    (level,) = branches(trie)
    root = Frontier(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    found = kernels.select(
        torch.tensor([[0.0, torch.nan, 1.0]]), torch.zeros(1), root, level, first_code=0, beam_width=1
    )
    assert found.nodes.tolist() == [[1]]
    assert found.scores.isnan().all()


ROWS = torch.tensor([[-torch.inf] * 5, [0.0] * 5, [0.0, torch.nan, 0.0, 0.0, 0.0], [0.0, torch.inf, 0.0, 0.0, 0.0]])
NORMS = torch.tensor([torch.finfo(torch.float32).min, torch.tensor(5.0).log(), torch.nan, torch.nan])


def test_a_row_without_a_possible_code_has_a_finite_normalizer_and_nan_stays():
    torch.testing.assert_close(kernels.normalize_rows(ROWS), NORMS, equal_nan=True)


@pytest.mark.parametrize("normalizer", ["full", "level", "trie"])
def test_where_no_code_is_possible_there_is_no_candidate(normalizer):
    trie = tries.build(torch.tensor([[0], [1]]))
    (level,) = branches(trie)
    root = Frontier(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    logits = torch.full((1, 2), -torch.inf)
    norms = kernels.log_normalizer(logits, root.nodes, level, normalizer)
    found = kernels.select(logits, norms, root, level, first_code=0, beam_width=2)
    assert found.nodes.tolist() == [[-1, -1]]
    assert found.scores.tolist() == [[-torch.inf, -torch.inf]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    level=st.integers(0, 2),
    normalizer=st.sampled_from(["full", "level", "trie"]),
    filtered=st.booleans(),
    width=st.integers(1, 40),
)
def test_static_shapes_select_what_any_shape_selects(seed, level, normalizer, filtered, width):
    step = Step(seed, level, normalizer, filtered=filtered)
    nodes, scores = step.frontier.nodes, step.frontier.scores
    rows = torch.arange(len(nodes))[:, None].expand_as(nodes)
    open_ = selection.candidates(step.trie, level, nodes, step.filter, rows)
    logits = step.logits[open_.parent, step.trie.codes[level][open_.node].long() + step.first_code]
    gains = torch.empty_like(logits)
    for beam in range(nodes.numel()):  # the normalizer by its definition
        own = open_.parent == beam
        among = logits[own] if normalizer == "trie" else step.logits[beam]
        certain = normalizer == "trie" and int(own.sum()) == 1
        gains[own] = 0.0 if certain else logits[own] - among.double().logsumexp(0).float()
    gains = gains.masked_fill(logits.isneginf() & gains.isnan(), -torch.inf)  # no code of the node is possible
    expected = selection.select(open_, scores.flatten()[open_.parent] + gains, nodes.shape, width)
    found = step.select(width)
    places = expected.nodes.shape[1]
    torch.testing.assert_close(found.scores[:, :places], expected.scores)
    assert found.nodes[:, places:].eq(-1).all()
    if not _has_near_ties(found.scores):
        assert found.nodes[:, :places].tolist() == expected.nodes.tolist()
        living = found.nodes[:, :places] >= 0
        assert found.parents[:, :places][living].tolist() == expected.parents[living].tolist()


def _has_near_ties(scores):
    """Whether the last digit, which depends on the order of a sum, could decide."""
    ordered = scores.sort(dim=1).values
    steps = (ordered[:, 1:] - ordered[:, :-1]).nan_to_num(nan=0.0)
    return bool(((steps > 0) & (steps < 1e-4)).any())


@pytest.fixture(scope="module")
def fused():
    """The Triton kernels, on a GPU or interpreted, and the device."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: its kernels are not compared with their twins")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is no GPU, and TRITON_INTERPRET=1 was not set before Python began")
    module = importlib.import_module("leadre.decoding.triton_kernels")
    block, module._LARGEST_BLOCK = module._LARGEST_BLOCK, 4  # so that a node has several blocks of children
    yield module, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module._LARGEST_BLOCK = block


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter calculates in numpy, which tells of NaN
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    level=st.integers(0, 2),
    normalizer=st.sampled_from(["full", "level", "trie"]),
    filtered=st.booleans(),
    broken=st.booleans(),
    half=st.booleans(),
    width=st.sampled_from([1, 2, 5, 50]),
)
def test_triton_selects_what_its_twin_selects(fused, seed, level, normalizer, filtered, broken, half, width):
    triton, device = fused
    step = Step(seed, level, normalizer, filtered=filtered, broken=broken, most_users=2, most_beams=4).to(device)
    if half:
        step.logits = step.logits.to(torch.bfloat16)
    nodes, norms = step.frontier.nodes, step.norms()
    if normalizer == "trie":
        expected = kernels.normalize_children(step.logits, nodes, step.branches, step.filter)
        made = triton.normalize_children(step.logits, nodes, step.branches, step.filter)
    else:
        expected, made = kernels.normalize_rows(step.logits), triton.normalize_rows(step.logits)
    living = nodes.flatten() >= 0
    torch.testing.assert_close(made[living], expected[living], equal_nan=True)
    arguments = (step.logits, norms, step.frontier, step.branches, step.first_code, width, step.filter)
    for mine, wanted in zip(triton.select_children(*arguments), kernels.select_children(*arguments), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_normalizes_rows_without_a_possible_code_as_its_twin(fused):
    triton, device = fused
    torch.testing.assert_close(triton.normalize_rows(ROWS.to(device)).cpu(), NORMS, equal_nan=True)


def test_triton_reads_columns_of_a_wider_head(fused):
    triton, device = fused
    step = Step(3, 1, "level", most_users=1).to(device)
    wide = torch.cat([torch.full_like(step.logits, 9.0), step.logits], 1)[:, step.logits.shape[1] :]
    assert not wide.is_contiguous()
    torch.testing.assert_close(triton.normalize_rows(wide), triton.normalize_rows(step.logits))
    arguments = (step.norms(), step.frontier, step.branches, 0, 3, None)
    for mine, wanted in zip(
        triton.select_children(wide, *arguments), triton.select_children(step.logits, *arguments), strict=True
    ):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("module", ["decoding/triton_kernels.py", "lm/triton_rows.py"])
def test_every_launch_says_whether_products_and_sums_are_fused(module):
    """Triton warns where it is left open, since the default is about to change; read here, since it takes a GPU."""
    source = (Path(kernels.__file__).parents[1] / module).read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    launches = [call for call in calls if isinstance(call.func, ast.Subscript)]
    assert launches
    for launch in launches:
        assert "enable_fp_fusion" in {keyword.arg for keyword in launch.keywords}, ast.unparse(launch)


@pytest.mark.slow
def test_triton_compiles_its_kernels_for_a_gpu_without_one(tmp_path):
    """What the interpreter lets pass, such as a variable that changes its type, the compiler refuses."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: its kernels are not compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", COMPILE]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [f"{name}:ptx" for name in COMPILED]


CHILDREN = ["_normalize_children", "_count_digits", "_count_kept", "_write_kept"]
COMPILED = ["_normalize_rows", *CHILDREN, *CHILDREN, *CHILDREN, "_quantize_rows", "_quantize_rows", "_rescale"]
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from leadre.decoding import triton_kernels as kernels
from leadre.lm import triton_rows as rows

def compile(kernel, constants, **types):
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    given = {name: types.get(name, "i32") for name in kernel.arg_names if name not in constants}
    signature = {name: given.get(name, "constexpr") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source, target = ASTSource(kernel, signature, values), GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"enable_fp_fusion": True})
    print(kernel.__name__ + ":" + ("ptx" if made.asm["ptx"] else "none"))

# The types of a trie and a filter, as they are made; a number that is 1 when it is launched is a constant to Triton.
pointers = dict.fromkeys(["digits", "kept", "first_child", "counts"], "*i32") | {"codes": "*i16"}
pointers |= dict.fromkeys(["groups", "spent", "beam_nodes", "found_nodes", "found_parents"], "*i64")
pointers |= dict.fromkeys(["norms", "scores", "found_scores", "smooth", "scales", "columns"], "*fp32")
pointers |= {"logits": "*bf16", "x": "*bf16"}
contiguous = {"column_stride": 1}
filtered, open_ = {"SETS": 1, "SEARCH": 11}, {"SETS": 0, "SEARCH": 0}
unread = dict.fromkeys(["counts", "groups", "spent"], "*i16")  # the codes stand for them
compile(kernels._normalize_rows, {**contiguous, "BLOCK": 4096}, **{**pointers, "columns": "i32"})
for options, types in (
    ({"BLOCK": 1024, "BEAMS": 64, **filtered}, {}),
    ({"BLOCK": 1024, "BEAMS": 64, **open_}, unread),
    ({"BLOCK": 1, "BEAMS": 1, "width": 1, "beam_width": 1, "nodes": 1, **filtered}, {"logits": "*fp32"}),
):
    given = {**pointers, **types}
    for kernel in (kernels._normalize_children, kernels._count_digits, kernels._count_kept, kernels._write_kept):
        compile(kernel, {**contiguous, "PASS": 3, **options}, **given)
for number, largest, integer in (("*i8", 127.0, True), ("*fp8e4nv", 448.0, False)):
    constants = {**contiguous, "LARGEST": largest, "SMOOTH": integer, "INTEGER": integer, "BLOCK": 4096}
    compile(rows._quantize_rows, constants, **{**pointers, "columns": "i32", "made": number})
compile(rows._rescale, {"BLOCK": 4096}, **{**pointers, "product": "*i32", "rows": "*fp32", "made": "*bf16"})
"""
