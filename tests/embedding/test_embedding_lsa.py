"""Embeddings made from the ads' own texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from leadre.embedding import lsa
from leadre.embedding.hashing import hashing_vectors

CARS = [f"car {brand} electric wheels model {i}" for i, brand in enumerate(["volta", "ampere", "ohm", "watt"] * 3)]
FOOD = [f"noodles {brand} spicy soup taste {i}" for i, brand in enumerate(["wok", "pan", "pot", "grill"] * 3)]
WORDS = {"analyzer": "word", "ngrams": (1, 2), "max_terms": 1000, "seed": 0}


def lsa_vectors(texts, **options):
    return lsa.transform(lsa.fit(texts, **options), texts)


def _within_and_across(x):
    cosines, half = x @ x.T, len(x) // 2
    return min(cosines[:half, :half].mean(), cosines[half:, half:].mean()), cosines[:half, half:].mean()


def test_ads_of_one_category_are_nearer_to_each_other_than_to_another_category():
    within, across = _within_and_across(lsa_vectors(CARS + FOOD, dimension=4, **WORDS))
    assert within > 0.5 > 0.1 > across


def test_chinese_categories_are_told_apart_by_characters():
    cars = [f"上汽大众新能源汽车{i}型" for i in range(5)]
    food = [f"麻辣火锅底料口味{i}号" for i in range(5)]
    x = lsa_vectors(cars + food, dimension=4, analyzer="char_wb", ngrams=(1, 3), max_terms=1000, seed=0)
    within, across = _within_and_across(x)
    assert within > 0.5 > 0.2 > across


@pytest.mark.parametrize("dimension", [2, 24])
def test_directions_are_those_of_the_exact_decomposition(dimension):
    weights = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    dense = weights.fit_transform(CARS + FOOD).toarray()
    u, s, _ = np.linalg.svd(dense, full_matrices=False)
    exact = u[:, :dimension] * s[:dimension]
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    x = lsa_vectors(CARS + FOOD, dimension=dimension, **WORDS)
    np.testing.assert_allclose(x @ x.T, exact @ exact.T, atol=1e-3)  # directions are unique up to sign


def test_the_same_seed_gives_the_same_vectors():
    first, again = (lsa_vectors(CARS + FOOD, dimension=4, **WORDS) for _ in range(2))
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("texts", [["one"], ["one word", "two words"], ["same", "same", "same"], ["a b", "."]])
def test_fewer_texts_or_terms_than_dimensions_leave_zero_columns(texts):
    x = lsa_vectors(texts, dimension=8, **WORDS)
    assert x.shape == (len(texts), 8)
    assert not x[:, 4:].any()
    lengths = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(lengths, [0.0 if text == "." else 1.0 for text in texts], atol=1e-6)


def test_texts_without_any_term_are_an_error():
    with pytest.raises(ValueError, match=r"none of the 2 descriptions has a term .* check that the ads have a name"):
        lsa_vectors([".", "!"], dimension=2, **WORDS)


@pytest.fixture(scope="module")
def fitted():
    return lsa.fit(CARS + FOOD, dimension=4, **WORDS)


def test_new_texts_are_embedded_as_scikit_learn_does_with_what_was_fitted(fitted):
    terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    directions = TruncatedSVD(4, random_state=0).fit(terms.fit_transform(CARS + FOOD))
    new = ["a spicy car of watt", "noodles on wheels", "electric electric soup"]
    theirs = directions.transform(terms.transform(new))
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(lsa.transform(fitted, new), theirs, atol=1e-6)


def test_the_vector_of_a_text_depends_on_it_alone_bit_by_bit(fitted, tmp_path):
    together = lsa.transform(fitted, CARS + FOOD)
    lsa.save(fitted, tmp_path)
    again = lsa.load(tmp_path)
    assert (again.analyzer, again.ngrams, again.terms) == (fitted.analyzer, fitted.ngrams, fitted.terms)
    for row, text in enumerate(CARS + FOOD):
        assert lsa.transform(again, [text])[0].tobytes() == together[row].tobytes()


def test_a_text_without_any_known_term_has_the_zero_vector(fitted):
    x = lsa.transform(fitted, ["entirely unheard", "", "soup"])
    assert not x[:2].any()
    np.testing.assert_allclose(np.linalg.norm(x[2]), 1, atol=1e-6)
    assert lsa.transform(fitted, []).shape == (0, 4)


def test_an_n_gram_range_upside_down_is_an_error():
    with pytest.raises(ValueError, match=r"ngrams is \[2, 1\].*use \[1, 2\]"):
        lsa_vectors(CARS, dimension=2, **WORDS | {"ngrams": (2, 1)})


GOLDEN = [[0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 0, 1, -1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]


def test_hashing_is_the_same_on_every_machine():
    x = hashing_vectors(["Red car", "car red", "汽车", ""], dimension=8)
    assert np.sign(x).astype(int).tolist() == GOLDEN
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), [1, 1, 1, 0], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["red", "blue", "car", "road", "tea"]), min_size=1, max_size=6), st.randoms())
def test_hashing_knows_words_and_not_their_order(words, random):
    shuffled = random.sample(words, len(words))
    x = hashing_vectors([" ".join(words), " ".join(shuffled).upper()], dimension=16)
    assert x[0].tobytes() == x[1].tobytes()
