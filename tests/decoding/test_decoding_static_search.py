"""The search with static shapes: equal to beam search, without a step on the host, one recording a shape."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from leadre.catalog import trie as tries
from leadre.decoding import filters, kernels, static_search
from leadre.decoding.beam_search import beam_search
from leadre.decoding.static_search import LENGTH_STEP, StaticSearch, batch_size
from leadre.lm.quantized import quantize
from tests.decoding import tiny_models
from tests.decoding.tiny_models import MODELS, NORMALIZERS, SHAPE, TEXT, TINY, TOKENS, padded, tiny

OLDER = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, {}),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
    "opt": (OPTForCausalLM, OPTConfig, {"ffn_dim": 32, "word_embed_proj_dim": 16}),
}
CPU = torch.device("cpu")
DOUBLE = {kind: tiny(kind).double() for kind in MODELS}


def older(kind, **changes):
    """A model of a kind that knows no groups of heads."""
    network, config, extra = OLDER[kind]
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
    return network(config(**{**shape, **extra, **changes})).eval()


def catalog(seed, ads):
    return tries.build(torch.tensor(tiny_models.catalog(seed, ads)))


def prompts(seed, lengths, side="right"):
    return padded(tiny_models.prompts(seed, lengths), side)


def some_filter(trie, users, seen, seed):
    generator, ads = torch.Generator().manual_seed(seed), len(trie.codes[-1])
    allowed = torch.rand(2, ads, generator=generator) < 0.7
    groups = torch.randint(0, 2, (users,), generator=generator)
    return filters.make(
        trie, filters.counts(trie, allowed), groups, torch.randint(-1, ads, (users, seen), generator=generator)
    )


def static(model, trie, *, width=5, normalizer="full", device=CPU):
    return StaticSearch(model, trie=trie, sid_tokens=TOKENS, beam_width=width, normalizer=normalizer, device=device)


def assert_as_beam_search(model, ids, mask, trie, *, width=5, normalizer="full", filter=None):
    found = static(model, trie, width=width, normalizer=normalizer)(ids, mask, filter)
    expected = beam_search(
        model, ids, mask, trie=trie, sid_tokens=TOKENS, beam_width=width, normalizer=normalizer, filter=filter
    )
    assert found.rows.tolist() == expected.rows.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=5e-6)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    normalizer=st.sampled_from(NORMALIZERS),
    side=st.sampled_from(["left", "right"]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=10),
    ads=st.integers(1, 60),
    width=st.integers(1, 24) | st.tuples(*[st.integers(1, 9)] * 3),
    seen=st.none() | st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_results_are_those_of_beam_search(kind, normalizer, side, lengths, ads, width, seen, seed):
    """With models in float64: in float32 attention over other shapes moves a score by up to 1e-5."""
    trie = catalog(seed, ads)
    filter = None if seen is None else some_filter(trie, len(lengths), seen, seed)
    ids, mask = prompts(seed, lengths, side)
    assert_as_beam_search(DOUBLE[kind], ids, mask, trie, width=width, normalizer=normalizer, filter=filter)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_equal_scores_stand_in_the_order_of_their_sids(normalizer):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for width in (1, 3, 8, 50):
        assert_as_beam_search(model, *prompts(0, [4, 6]), catalog(5, 40), width=width, normalizer=normalizer)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_code_of_probability_zero_is_never_generated(normalizer):
    model = tiny()
    bias = torch.zeros(TEXT + 12)
    bias[TOKENS[1].start + 1] = -torch.inf
    model.lm_head.bias = torch.nn.Parameter(bias)
    trie = tries.build(torch.tensor([(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)]))
    assert_as_beam_search(model, *prompts(0, [4, 6]), trie, normalizer=normalizer)
    assert static(model, trie, normalizer=normalizer)(*prompts(0, [4])).rows[0, 3:].tolist() == [-1, -1]


def test_eager_attention_and_a_head_of_another_kind_are_used_as_they_are():
    class Doubled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = tiny("qwen2")
    model.set_attn_implementation("eager")
    head = Doubled(16, TEXT + 12, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    for normalizer in NORMALIZERS:
        assert_as_beam_search(model, *prompts(2, [7, 3]), catalog(1, 30), normalizer=normalizer)
    assert model.config._attn_implementation == "eager"


def test_the_model_keeps_its_attention():
    static(TINY["llama"], catalog(1, 30))(*prompts(2, [7, 3]))
    assert TINY["llama"].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", OLDER)
def test_models_whose_settings_know_no_groups_of_heads_are_searched(kind, attention):
    model = older(kind)
    assert not hasattr(model.config, "num_key_value_heads")
    model.set_attn_implementation(attention)
    assert_as_beam_search(model, *prompts(2, [7, 3]), catalog(1, 30))


def test_a_model_that_takes_no_other_attention_keeps_its_own():
    model = tiny("llama")
    model._supports_attention_backend = False
    search = static(model, catalog(1, 30))
    with search._attention():
        assert model.config._attn_implementation == "sdpa"
    assert_as_beam_search(model, *prompts(2, [7, 3]), catalog(1, 30))


def test_attention_of_grouped_heads_is_transformers_own():
    model, generator = TINY["qwen3"], torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 4, generator=generator)
    key, value = (torch.randn(2, 2, 9, 4, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, 5, 9).masked_fill(torch.rand(2, 1, 5, 9, generator=generator) < 0.3, -1e30)
    layer = model.model.layers[0].self_attn
    expected, _ = static_search.sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
    found, _ = static_search._beam_attention(layer, query, key, value, mask.repeat(1, 1, 2, 1), scaling=0.3)
    torch.testing.assert_close(found, expected)


class NothingOnTheHost(TorchDispatchMode):
    """Refuses every operation that takes or gives a tensor on the CPU, copies from there included."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs or {}))
        made = operation(*args, **(kwargs or {}))
        devices = {each.device.type for each in [*given, *tree_leaves(made)] if isinstance(each, torch.Tensor)}
        assert "cpu" not in devices, f"{operation} takes a step on the host"
        return made


def test_a_copy_from_the_host_is_a_step_there():
    with NothingOnTheHost(), pytest.raises(AssertionError, match="takes a step on the host"):
        torch.zeros(2).to("meta")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("kind", [*MODELS, *OLDER])
def test_the_search_takes_no_step_on_the_host(kind, normalizer, attention):
    """On the device `meta` there are shapes and no numbers: whatever asks for a number, or leaves it, fails."""
    meta, trie = torch.device("meta"), catalog(1, 40)
    model = (older(kind) if kind in OLDER else tiny(kind)).to(meta)
    model.set_attn_implementation(attention)
    search = static(model, trie, normalizer=normalizer)
    search.device = meta
    search.branches = tuple(
        each._replace(codes=each.codes.to(meta), first_child=each.first_child.to(meta)) for each in search.branches
    )
    filter = filters.Filter(
        *(
            part.to(meta) if isinstance(part, torch.Tensor) else tuple(each.to(meta) for each in part)
            for part in some_filter(trie, 3, 2, 0)
        )
    )
    ids = torch.zeros(3, LENGTH_STEP, dtype=torch.int64, device=meta)
    with torch.no_grad(), search._attention(), NothingOnTheHost():
        found = search._search(static_search._Inputs(ids, ids[:, 0], filter))
    assert found.rows.shape == found.scores.shape == (3, 5)
    assert found.rows.device == found.scores.device == meta


def test_one_recording_serves_a_shape():
    search, trie = static(TINY["llama"], catalog(1, 30)), catalog(1, 30)
    first, second = some_filter(trie, 9, 2, 0), some_filter(trie, 10, 3, 1)
    second = second._replace(counts=first.counts)
    for lengths in ([3] * 9, [7, 60, *[5] * 8]):
        search(*prompts(len(lengths), lengths))
    assert len(search._recordings) == 1
    for lengths, filter in (([3] * 9, first), ([4] * 10, filters.make(trie, first.counts, second.groups, second.seen))):
        search(*prompts(0, lengths), filter)
    assert len(search._recordings) == 2
    search(*prompts(0, [LENGTH_STEP + 1]))
    assert len(search._recordings) == 3


def test_users_who_have_seen_more_or_less_share_recordings():
    trie, search = catalog(1, 30), static(TINY["llama"], catalog(1, 30))
    counts = filters.counts(trie, torch.ones(1, 30, dtype=torch.bool))
    groups, generator = torch.zeros(8, dtype=torch.int64), torch.Generator().manual_seed(0)
    for turn in range(40):
        seen = torch.randint(-1, 30, (8, int(torch.randint(0, 500, (), generator=generator))), generator=generator)
        search(*prompts(turn, [3] * 8), filters.make(trie, counts, groups, seen))
    assert len(search._recordings) <= 5


def test_the_recording_that_was_not_used_for_longest_is_dropped(monkeypatch):
    monkeypatch.setattr(static_search, "_MOST_RECORDINGS", 2)
    search = static(TINY["llama"], catalog(1, 30))
    for users in (1, 2, 1, 3):
        search(*prompts(0, [3] * users))
    assert [key[0] for key in search._recordings] == [1, 3]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_head_reads_the_whole_vocabulary_for_a_block_of_beams_at_a_time(normalizer, monkeypatch):
    monkeypatch.setattr(static_search, "_HEAD_ROWS", 4)
    model, sizes = tiny("llama"), []
    model.lm_head.register_forward_hook(lambda _, given, made: sizes.append(made.shape))
    assert_as_beam_search(model, *prompts(0, [4, 6, 3]), catalog(5, 40), width=6, normalizer=normalizer)
    assert max((rows for rows, _ in sizes), default=4) == 4
    assert len(sizes) == (1 + 3 + 5 if normalizer == "full" else 0)  # of 3, 3 * 4 and 3 * 6 beams


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_level_that_is_impossible_as_a_whole_leaves_an_empty_list(normalizer):
    model = tiny()
    bias = torch.zeros(TEXT + 12)
    bias[TOKENS[1].start : TOKENS[1].stop] = -torch.inf
    model.lm_head.bias = torch.nn.Parameter(bias)
    trie = tries.build(torch.tensor([(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]))
    found = static(model, trie, normalizer=normalizer)(*prompts(0, [4, 6]))
    assert found.rows.eq(-1).all()
    assert_as_beam_search(model, *prompts(0, [4, 6]), trie, normalizer=normalizer)


@pytest.mark.parametrize("weights", ["w8a8", "fp8"])
def test_8_bit_weights_give_the_lists_that_they_give_in_beam_search(weights):
    model = tiny("llama")
    quantize(model, weights, [prompts(3, [9, 4, 7])])
    assert_as_beam_search(model, *prompts(0, [4, 6, 9]), catalog(5, 40))


def test_inputs_of_a_later_call_replace_those_of_the_first():
    trie = catalog(1, 30)
    search = static(TINY["hunyuan"], trie)
    a, b = some_filter(trie, 9, 3, 0), some_filter(trie, 10, 3, 1)
    b = filters.make(trie, a.counts, b.groups, b.seen)
    for seed, lengths, filter in ((0, [3] * 9, a), (1, [5, 9] * 5, b), (2, [1] * 9, a)):
        ids, mask = prompts(seed, lengths)
        expected = static(TINY["hunyuan"], trie)(ids, mask, filter)
        found = search(ids, mask, filter)
        assert found.rows.tolist() == expected.rows.tolist()
        torch.testing.assert_close(found.scores, expected.scores)
    assert len(search._recordings) == 1


def test_batch_sizes_are_few_and_never_much_larger():
    sizes = {batch_size(users) for users in range(1, 1025)}
    assert len(sizes) == 8 + 4 * 7
    assert all(users <= batch_size(users) < 1.25 * users + 1 for users in range(1, 1025))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_nan_is_refused_at_the_end(normalizer):
    model = tiny()
    bias = torch.zeros(TEXT + 12)
    bias[TOKENS[1].start] = torch.nan
    model.lm_head.bias = torch.nn.Parameter(bias)
    trie = tries.build(torch.tensor([(0, 0, 0), (0, 1, 0), (1, 0, 0)]))
    with pytest.raises(ValueError, match="model gives NaN for 2 of 2 users"):
        static(model, trie, normalizer=normalizer)(*prompts(0, [4, 6]))


def test_what_beam_search_refuses_is_refused():
    with pytest.raises(ValueError, match=r"leaves 1 prompts .* every prompt needs a token"):
        static(TINY["llama"], catalog(0, 10))(
            torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 0, 0], [0, 0, 0]])
        )
    with pytest.raises(ValueError, match="beam_width is 0"):
        static(TINY["llama"], catalog(0, 10), width=0)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        static(tiny().train(), catalog(0, 10))
    with pytest.raises(ValueError, match="sid_tokens has 3 levels, but trie has 2"):
        static(TINY["llama"], tries.build(torch.tensor([[0, 1]])))


def test_prompts_and_filters_that_do_not_belong_together_are_refused():
    search, trie = static(TINY["llama"], catalog(0, 10)), catalog(0, 10)
    with pytest.raises(ValueError, match="input_ids has no row"):
        search(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="filter has 3 rows for 2 users"):
        search(*prompts(0, [4, 6]), some_filter(trie, 3, 2, 0))
    with pytest.raises(ValueError, match="make it with the trie that is searched"):
        search(*prompts(0, [4, 6]), some_filter(catalog(0, 20), 2, 2, 0))


def test_torchs_kernels_on_a_gpu_are_told_of_once(caplog):
    static_search._tell_of_twins.cache_clear()
    with caplog.at_level(logging.WARNING):
        static_search._tell_of_twins()
        static_search._tell_of_twins()
    assert [record.message.split(":")[0] for record in caplog.records] == ["Triton is not installed"]


def test_rotary_frequencies_of_one_kind_of_layers_are_looked_at():
    rope = {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}
    config = SimpleNamespace(to_dict=lambda: {"rope_parameters": rope})
    with pytest.raises(ValueError, match="of the kind longrope"):
        static_search._check_rotary(SimpleNamespace(config=config))
    rope["full_attention"]["rope_type"] = "default"
    static_search._check_rotary(SimpleNamespace(config=config))


def test_rotary_frequencies_that_depend_on_the_prompt_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match="of the kind dynamic, which depend on the length of the prompt"):
        static(tiny("llama", rope_parameters=rope), catalog(0, 10))


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_captured_graph_gives_what_the_same_code_gives_on_the_cpu(kind, normalizer, fused, monkeypatch):
    monkeypatch.setattr(kernels, "FUSED", fused and kernels.FUSED)
    cuda, trie = torch.device("cuda"), catalog(1, 40)
    search = static(tiny(kind).to(cuda), trie, normalizer=normalizer, device=cuda)
    expected = static(TINY[kind], trie, normalizer=normalizer)
    shared = some_filter(trie, 3, 2, 0).counts
    on_device = tuple(each.to(cuda) for each in shared)
    for seed, lengths in ((0, [3, 9, 5]), (1, [7, 1, 8]), (2, [60, 2, 64]), (3, [70])):
        ids, mask = prompts(seed, lengths)
        some = some_filter(trie, len(lengths), 2, seed)
        for filter in (None, filters.make(trie, shared, some.groups, some.seen)):
            moved = None
            if filter is not None:
                spent = tuple(each.to(cuda) for each in filter.spent)
                moved = filters.Filter(on_device, filter.groups.to(cuda), filter.seen.to(cuda), spent)
            wanted, found = expected(ids, mask, filter), search(ids.to(cuda), mask.to(cuda), moved)
            assert found.rows.tolist() == wanted.rows.tolist()
            torch.testing.assert_close(found.scores.cpu(), wanted.scores, rtol=1e-4, atol=1e-4)
    assert len(search._recordings) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("weights", ["bf16", "w8a8", "fp8"])
def test_a_replayed_graph_gives_what_the_same_operations_give_outside_of_it(weights, attention):
    cuda, sizes = torch.device("cuda"), {"hidden_size": 64, "intermediate_size": 128}
    model = tiny("llama", **sizes).to(cuda, torch.bfloat16)
    model.set_attn_implementation(attention)
    if weights != "bf16":
        quantize(model, weights, [tuple(part.to(cuda) for part in prompts(9, [9, 4, 7]))])
    search = static(model, catalog(1, 40), device=cuda)
    for seed, lengths in ((0, [3, 9, 5]), (1, [7, 1, 8]), (2, [60, 2, 64])):  # captured, then replayed
        ids, mask = (part.to(cuda) for part in prompts(seed, lengths))
        with torch.no_grad(), search._attention():
            expected = search._search(static_search._Inputs(*static_search._pack(ids, mask), None))
        found = search(ids, mask)
        assert found.rows.tolist() == expected.rows.tolist()
        torch.testing.assert_close(found.scores, expected.scores)
    assert len(search._recordings) == 1
