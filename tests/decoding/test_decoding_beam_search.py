"""Beam search: against scoring every ad one by one, against Transformers' generate, and at its edges."""

from functools import wraps

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from leadre.catalog import trie as tries
from leadre.catalog.trie import Trie
from leadre.decoding import filters
from leadre.decoding.beam_search import Beams, beam_search, sid_tokens
from tests.decoding.tiny_models import MODELS, NORMALIZERS, SHAPE, TEXT, TINY, TOKENS, catalog, padded, prompts, tiny


def search(model, rows, sids, *, side="right", width=5, normalizer="full", trie=None, filter=None):
    ids, mask = padded(rows, side)
    trie = tries.build(torch.tensor(sids)) if trie is None else trie
    return beam_search(
        model, ids, mask, trie=trie, sid_tokens=TOKENS, beam_width=width, normalizer=normalizer, filter=filter
    )


def log_probs(model, prompt, prefix, sids, normalizer):
    """The log-probability of every code after a prefix, from one plain forward; only feasible codes have one."""
    tokens = torch.tensor([TOKENS[level].start + code for level, code in enumerate(prefix)], dtype=torch.int64)
    with torch.no_grad():
        logits = model(torch.cat([prompt, tokens])[None]).logits[0, -1].float()
    level = TOKENS[len(prefix)]
    feasible = sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix})
    among = {
        "full": range(len(logits)),
        "level": level,
        "trie": [level.start + code for code in feasible],
    }[normalizer]
    total = logits[list(among)].logsumexp(0)
    return {code: float(logits[level.start + code] - total) for code in feasible}


def score_all(model, prompt, sids, normalizer):
    """The independent reference: the score of every prefix of every ad, each read alone from its start."""
    scores = {(): 0.0}
    for level in range(len(sids[0])):
        for prefix in sorted({sid[:level] for sid in sids}):
            for code, gain in log_probs(model, prompt, prefix, sids, normalizer).items():
                scores[(*prefix, code)] = scores[prefix] + gain
    return scores


def reference(model, prompt, sids, normalizer, width):
    """Beam search by the book (LEADRE A.3), over the scores of the reference."""
    scores = score_all(model, prompt, sids, normalizer)
    beams, widths = [()], [width] * len(sids[0]) if isinstance(width, int) else width
    for level in range(len(sids[0])):
        grown = sorted({sid[: level + 1] for sid in sids if sid[:level] in beams})
        beams = sorted(grown, key=lambda prefix: (-scores[prefix], prefix))[: widths[level]]
    return [(sids.index(sid), scores[sid]) for sid in beams]


def assert_lists(beams, expected):
    for rows, scores, wanted in zip(beams.rows, beams.scores, expected, strict=True):
        missing = len(rows) - len(wanted)
        assert rows.tolist() == [row for row, _ in wanted] + [-1] * missing
        wanted_scores = torch.tensor([score for _, score in wanted] + [-torch.inf] * missing)
        torch.testing.assert_close(scores, wanted_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_beams_are_those_of_scoring_every_prefix_by_plain_forwards(kind, normalizer):
    sids, rows = catalog(1, 30), prompts(2, [7, 3, 5])
    beams = search(TINY[kind], rows, sids, width=4, normalizer=normalizer)
    assert_lists(beams, [reference(TINY[kind], row, sids, normalizer, 4) for row in rows])


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    normalizer=st.sampled_from(NORMALIZERS),
    side=st.sampled_from(["left", "right"]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    ads=st.integers(1, 60),
    width=st.integers(1, 24),
    seed=st.integers(0, 10_000),
)
def test_beams_are_right_for_any_shape_width_and_padding(kind, normalizer, side, lengths, ads, width, seed):
    sids, rows = catalog(seed, ads), prompts(seed, lengths)
    beams = search(TINY[kind], rows, sids, side=side, width=width, normalizer=normalizer)
    assert_lists(beams, [reference(TINY[kind], row, sids, normalizer, width) for row in rows])


@pytest.mark.parametrize("normalizer", ["full", "trie"])
@pytest.mark.parametrize("kind", MODELS)
def test_beams_are_those_of_transformers_generate(kind, normalizer):
    model, sids, rows, width = TINY[kind], catalog(3, 40), prompts(4, [6, 9]), 5
    ids, mask = padded(rows, "left")
    text = ids.shape[1]

    def feasible(_, tokens):
        prefix = [token - TOKENS[level].start for level, token in enumerate(tokens[text:].tolist())]
        level = len(prefix)
        return sorted({TOKENS[level].start + sid[level] for sid in sids if list(sid[:level]) == prefix})

    found = model.generate(
        ids,
        attention_mask=mask,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(TOKENS),
        do_sample=False,
        prefix_allowed_tokens_fn=feasible,
        renormalize_logits=normalizer == "trie",
        length_penalty=0.0,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = found.sequences[:, text:].view(len(rows), width, len(TOKENS))
    offsets = torch.tensor([tokens.start for tokens in TOKENS])
    expected = [[sids.index(tuple(sid)) for sid in user] for user in (sequences - offsets).tolist()]
    beams = search(model, rows, sids, side="left", width=width, normalizer=normalizer)
    assert beams.rows.tolist() == expected
    torch.testing.assert_close(beams.scores, found.sequences_scores.view(len(rows), width), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("widths", [(1, 2, 9), (4, 1, 3), (2, 20, 5)])
def test_beam_widths_may_differ_by_level(widths, normalizer):
    sids, rows = catalog(1, 40), prompts(2, [7, 3, 5])
    beams = search(TINY["qwen3"], rows, sids, width=widths, normalizer=normalizer)
    assert beams.rows.shape == (3, widths[-1])
    assert_lists(beams, [reference(TINY["qwen3"], row, sids, normalizer, widths) for row in rows])


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    normalizer=st.sampled_from(NORMALIZERS),
    ads=st.integers(1, 60),
    width=st.integers(1, 12),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    seen=st.integers(0, 30),
    seed=st.integers(0, 10_000),
)
def test_a_filtered_search_is_that_on_a_trie_of_the_allowed_ads_alone(kind, normalizer, ads, width, share, seen, seed):
    sids, rows = catalog(seed, ads), prompts(seed, [5, 3, 8])
    random = torch.Generator().manual_seed(seed)
    allowed, groups = torch.rand(2, ads, generator=random) < share, torch.tensor([0, 1, 0])
    seen_rows = torch.randint(-1, ads, (3, seen), generator=random)
    trie = tries.build(torch.tensor(sids))
    filter = filters.make(trie, filters.counts(trie, allowed), groups, seen_rows)
    beams = search(TINY[kind], rows, sids, width=width, normalizer=normalizer, filter=filter)
    for user in range(3):
        left = [n for n in range(ads) if allowed[groups[user], n] and n not in seen_rows[user].tolist()]
        found = Beams(beams.rows[user : user + 1], beams.scores[user : user + 1])
        if left:
            alone = search(TINY[kind], [rows[user]], [sids[n] for n in left], width=width, normalizer=normalizer)
            back = torch.tensor([*left, -1])
            assert found.rows.tolist() == back[alone.rows].tolist()
            assert int((found.rows >= 0).sum()) == min(width, len(left))
            torch.testing.assert_close(found.scores, alone.scores, atol=1e-4, rtol=0)
        else:
            assert found.rows.tolist() == [[-1] * width]


def test_the_ads_below_a_prefix_are_found_by_allowing_them_alone():
    sids = catalog(3, 40)
    trie = tries.build(torch.tensor(sids))
    prefix = sids[20][:1]
    only = filters.counts(trie, filters.below(trie, prefix)[None])
    filter = filters.make(trie, only, torch.tensor([0]), torch.zeros(1, 0, dtype=torch.int64))
    beams = search(TINY["llama"], prompts(0, [6]), sids, width=40, filter=filter)
    assert sorted(row for row in beams.rows[0].tolist() if row >= 0) == [
        row for row, sid in enumerate(sids) if sid[:1] == prefix
    ]


def rows_read(model, monkeypatch):
    """Record how many tokens of each user every forward reads."""
    lengths, decoder = [], model.get_decoder()
    forward = decoder.forward

    @wraps(forward)
    def counted(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", counted)
    return lengths


def test_the_prompt_is_read_once_and_then_one_code_a_beam(monkeypatch):
    lengths = rows_read(TINY["qwen2"], monkeypatch)
    search(TINY["qwen2"], prompts(0, [6, 9]), catalog(0, 50), width=4)
    assert lengths == [9, 4, 4]


def test_under_trie_forced_codes_cost_no_forward_pass(monkeypatch):
    lengths = rows_read(TINY["qwen2"], monkeypatch)
    search(TINY["qwen2"], prompts(0, [6]), [(0, 1, 0), (1, 2, 0), (2, 2, 2)], width=3, normalizer="trie")
    assert lengths == [6]  # a code tells the ad
    search(TINY["qwen2"], prompts(0, [6]), [(0, 1, 0), (0, 1, 2), (1, 2, 0)], width=3, normalizer="trie")
    assert lengths[1:] == [6, 2]  # one beam has a choice, at its end: its two codes are read together
    search(TINY["qwen2"], prompts(0, [6]), [(2, 1, 0)], width=3, normalizer="trie")
    assert lengths[3:] == [6]


def test_learnable_tokens_in_a_prompt_count_like_any_token():
    sids, rows = catalog(1, 30), prompts(2, [7, 3])
    rows = [torch.cat([torch.tensor([0, 1]), row]) for row in rows]
    learned = tiny()
    with torch.no_grad():
        learned.get_input_embeddings().weight[:2] += 3
    before, after = (search(model, rows, sids, width=4) for model in (TINY["hunyuan"], learned))
    assert not torch.allclose(before.scores, after.scores)
    assert_lists(after, [reference(learned, row, sids, "full", 4) for row in rows])


def test_adapters_are_part_of_the_model():
    model, sids, rows = tiny(), catalog(1, 30), prompts(2, [7, 3])
    adapters = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, adapters).eval()
    beams = search(adapted.get_base_model(), rows, sids, width=4)
    merged = adapted.merge_and_unload()
    assert_lists(beams, [reference(merged, row, sids, "full", 4) for row in rows])


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_beam_whose_every_code_has_probability_zero_ends(normalizer):
    model = tiny()
    bias = torch.zeros(TEXT + 12)
    bias[list(TOKENS[1])] = -torch.inf
    model.lm_head.bias = torch.nn.Parameter(bias)
    sids = [(0, 0, 0), (0, 1, 0), (1, 3, 0)]
    beams = search(model, prompts(0, [4]), sids, width=3, normalizer=normalizer)
    certain = [2] if normalizer == "trie" else [-1]  # there the only child is certain, whatever the model says
    assert beams.rows.tolist() == [[*certain, -1, -1]]


def test_normalizers_rank_differently():
    sids, rows = catalog(1, 30), prompts(2, [7, 3, 5, 4])
    lists = [search(TINY["qwen2"], rows, sids, width=8, normalizer=name).rows.tolist() for name in NORMALIZERS]
    assert lists[0] != lists[2]
    assert lists[1] != lists[2]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("ads", [1, 2, 17])
def test_a_beam_wider_than_the_catalog_gives_every_ad_once(ads, normalizer):
    beams = search(TINY["hunyuan"], prompts(0, [4, 6]), catalog(0, ads), width=20, normalizer=normalizer)
    assert beams.rows.shape == (2, 20)
    for rows, scores in zip(beams.rows, beams.scores, strict=True):
        assert sorted(rows[:ads].tolist()) == list(range(ads))
        assert rows[ads:].tolist() == [-1] * (20 - ads)
        assert bool(scores[:ads].isfinite().all())
        assert scores[ads:].tolist() == [-torch.inf] * (20 - ads)


def test_under_trie_the_scores_of_the_whole_catalog_are_a_distribution():
    beams = search(TINY["llama"], prompts(0, [4, 6]), catalog(0, 37), width=37, normalizer="trie")
    torch.testing.assert_close(beams.scores.exp().sum(1), torch.ones(2))


def test_equal_scores_stand_in_the_order_of_their_sids():
    model, sids = tiny(), catalog(5, 40)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for width in (1, 3, 8, 50):
        beams = search(model, prompts(0, [4, 6]), sids, width=width, normalizer="full")
        kept = list(range(len(sids)))[:width]
        assert beams.rows[0, : len(kept)].tolist() == kept
        assert beams.rows[0].tolist() == beams.rows[1].tolist()


def test_a_ready_list_does_not_change_with_its_batch():
    sids, rows = catalog(1, 30), prompts(2, [7, 3, 5])
    together = search(TINY["hunyuan"], rows, sids)
    for number, row in enumerate(rows):
        alone = search(TINY["hunyuan"], [row], sids)
        assert alone.rows[0].tolist() == together.rows[number].tolist()


@pytest.mark.parametrize("kind", ["hunyuan", "qwen2"])
def test_eager_attention_gives_the_same_beams(kind):
    sids, rows = catalog(1, 30), prompts(2, [7, 3, 5])
    eager = tiny(kind)
    eager.set_attn_implementation("eager")
    expected, found = search(TINY[kind], rows, sids), search(eager, rows, sids)
    assert found.rows.tolist() == expected.rows.tolist()
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def test_a_head_of_another_kind_is_called_whole():
    class Doubled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model, sids, rows = tiny(), catalog(1, 30), prompts(2, [7, 3])
    head = Doubled(16, TEXT + 12, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    for normalizer in NORMALIZERS:
        beams = search(model, rows, sids, width=4, normalizer=normalizer)
        assert_lists(beams, [reference(model, row, sids, normalizer, 4) for row in rows])


def test_bfloat16_scores_are_summed_in_float32():
    model = tiny().to(torch.bfloat16)
    beams = search(model, prompts(0, [4, 6]), catalog(0, 30))
    assert beams.scores.dtype == torch.float32
    assert bool((beams.rows >= 0).all())


def with_bias(token, value):
    """A model whose head gives one token a fixed logit."""
    model = tiny()
    bias = torch.zeros(TEXT + 12)
    bias[token] = value
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_nan_logits_are_refused_and_named(normalizer):
    model = with_bias(TOKENS[1].start, torch.nan)
    with pytest.raises(ValueError, match=r"model gives NaN for \d+ of \d+ codes at level b"):
        search(model, prompts(0, [4, 6]), [(0, 0, 0), (0, 1, 0), (1, 0, 0)], normalizer="trie")
    with pytest.raises(ValueError, match=r"model gives NaN"):
        search(model, prompts(0, [4, 6]), [(0, 0, 0), (0, 1, 0), (1, 0, 0)], normalizer=normalizer)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_code_of_probability_zero_is_never_generated(normalizer):
    sids = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    beams = search(with_bias(TOKENS[1].start + 1, -torch.inf), prompts(0, [4, 6]), sids, width=5, normalizer=normalizer)
    for rows, scores in zip(beams.rows.tolist(), beams.scores, strict=True):
        assert sorted(rows[:3]) == [0, 2, 4]
        assert rows[3:] == [-1, -1]
        assert scores.isfinite().tolist() == [True] * 3 + [False] * 2


def test_when_every_code_has_probability_zero_no_ad_is_generated():
    beams = search(with_bias(TOKENS[0].start, -torch.inf), prompts(0, [4]), [(0, 0, 0), (0, 1, 0)], width=2)
    assert beams.rows.tolist() == [[-1, -1]]
    assert beams.scores.tolist() == [[-torch.inf, -torch.inf]]


def test_gradients_and_the_model_are_left_alone():
    model = tiny()
    before = [weight.clone() for weight in model.parameters()]
    beams = search(model, prompts(0, [4]), catalog(0, 10))
    assert not beams.scores.requires_grad
    assert all(torch.equal(x, y) for x, y in zip(before, model.parameters(), strict=True))


def test_an_empty_trie_is_refused():
    empty = Trie(
        tuple(torch.zeros(0, dtype=torch.int32) for _ in TOKENS),
        tuple(torch.zeros(width, dtype=torch.int64) for width in (2, 1, 1)),
    )
    with pytest.raises(ValueError, match="trie is empty: there is no ad to generate"):
        search(TINY["hunyuan"], prompts(0, [4]), None, trie=empty)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match=r"leaves 1 prompts .* every prompt needs a token"):
        search(TINY["hunyuan"], prompts(0, [4, 0]), catalog(0, 10))


def test_a_beam_width_of_zero_is_refused():
    with pytest.raises(ValueError, match="beam_width is 0"):
        search(TINY["hunyuan"], prompts(0, [4]), catalog(0, 10), width=0)
    with pytest.raises(ValueError, match=r"beam_width is \(3, 0, 2\)"):
        search(TINY["hunyuan"], prompts(0, [4]), catalog(0, 10), width=(3, 0, 2))


def test_beam_widths_for_another_number_of_levels_are_refused():
    with pytest.raises(ValueError, match=r"beam_width is \[3, 2\], 2 numbers, but S-IDs have 3 codes"):
        search(TINY["hunyuan"], prompts(0, [4]), catalog(0, 10), width=(3, 2))


def test_a_trie_of_another_catalog_is_refused():
    with pytest.raises(ValueError, match="sid_tokens has 3 levels, but trie has 2"):
        search(TINY["hunyuan"], prompts(0, [4]), [(0, 0), (0, 1)])
    with pytest.raises(ValueError, match="sid_tokens has 5 codes at level b, but trie has the code 5 there"):
        search(TINY["hunyuan"], prompts(0, [4]), [(0, 5, 0)])
    with pytest.raises(ValueError, match="sid_offsets has 2 levels, but num_codes has 1"):
        sid_tokens((10, 14), (4,))


def test_a_model_without_the_tokens_is_refused():
    small = Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "vocab_size": 21})).eval()
    with pytest.raises(ValueError, match="sid_tokens reaches token 21, but model has 21 tokens"):
        search(small, prompts(0, [4]), catalog(0, 10))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        search(tiny().train(), prompts(0, [4]), catalog(0, 10))


def test_sliding_windows_and_scaled_heads_are_refused():
    window = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).eval()
    with pytest.raises(ValueError, match="mistral with sliding_window, which the search does not support"):
        search(window, prompts(0, [4]), catalog(0, 10))
    layers = tiny("qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=4)
    with pytest.raises(ValueError, match="qwen2 with sliding_attention"):
        search(layers, prompts(0, [4]), catalog(0, 10))
    scaled = tiny()
    scaled.config.logits_scaling = 8.0
    with pytest.raises(ValueError, match="with logits_scaling"):
        search(scaled, prompts(0, [4]), catalog(0, 10))


def test_models_without_positions_and_other_attention_are_refused():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=22, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(ValueError, match="bloom with no position_ids, which the search does not support"):
        search(bloom, prompts(0, [4]), catalog(0, 10))
    shape = {"vocab_size": 22, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    falcon = FalconForCausalLM(FalconConfig(**shape, alibi=True)).eval()
    with pytest.raises(ValueError, match="falcon with alibi"):
        search(falcon, prompts(0, [4]), catalog(0, 10))
    flex = tiny("qwen2")
    flex.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="qwen2 with flex_attention attention"):
        search(flex, prompts(0, [4]), catalog(0, 10))


def test_no_user_and_a_filter_of_other_users_are_refused():
    trie = tries.build(torch.tensor(catalog(0, 10)))
    with pytest.raises(ValueError, match="input_ids has no row: give the prompt of at least one user"):
        beam_search(
            TINY["hunyuan"],
            torch.zeros(0, 4, dtype=torch.int64),
            torch.zeros(0, 4, dtype=torch.int64),
            trie=trie,
            sid_tokens=TOKENS,
            beam_width=2,
            normalizer="full",
        )
    given_counts = filters.counts(trie, torch.ones(1, 10, dtype=torch.bool))
    alone = filters.make(trie, given_counts, torch.tensor([0]), torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="filter has 1 rows for 2 users"):
        search(TINY["hunyuan"], prompts(0, [4, 3]), catalog(0, 10), filter=alone)
