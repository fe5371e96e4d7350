"""Latent semantic analysis: TF-IDF of the texts' n-grams, then the leading singular directions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from leadre.embedding.unit_rows import unit_rows

Analyzer = Literal["word", "char_wb"]


class LSA(NamedTuple):
    """What was learned from texts, enough to embed others; T terms, D directions of which some may be zero.

    ``terms`` (T) are n-grams as ``analyzer`` and ``ngrams`` cut them; ``idf`` is ``(T,)`` float64 and
    ``directions`` ``(D, T)`` float32.
    """

    analyzer: Analyzer
    ngrams: tuple[int, int]
    terms: list[str]
    idf: NDArray[np.float64]
    directions: NDArray[np.float32]


def fit(
    texts: Sequence[str], *, dimension: int, analyzer: Analyzer, ngrams: tuple[int, int], max_terms: int, seed: int
) -> LSA:
    """Learn directions from the words that texts share with each other.

    Args:
        texts: N texts.
        dimension: Width D. Where there are fewer texts or terms than D, the directions past the smaller number are
            zero.
        analyzer: ``word`` counts words, ``char_wb`` characters inside words: for languages without spaces.
        ngrams: The shortest and the longest n-gram that counts as a term.
        max_terms: The most frequent terms that are kept.
        seed: Of the randomized decomposition.

    Raises:
        ValueError: If no text has a term, or the n-gram range is upside down.
    """
    if ngrams[0] > ngrams[1]:
        raise ValueError(f"ngrams is {list(ngrams)}, but the shortest comes first: use {[ngrams[1], ngrams[0]]}")
    counter = _counter(analyzer, ngrams, max_features=max_terms)
    try:
        weights = counter.fit_transform(texts)
    except ValueError as error:
        raise ValueError(
            f"texts: none of the {len(texts)} descriptions has a term ({analyzer} n-grams); "
            "check that the ads have a name, a category or attributes"
        ) from error
    rank = min(dimension, *weights.shape)
    directions = np.zeros((dimension, weights.shape[1]), dtype=np.float32)
    # A single column is a length, not a direction: the decomposition needs two terms.
    directions[:rank] = TruncatedSVD(rank, random_state=seed).fit(weights).components_ if rank > 1 else 1
    return LSA(analyzer, ngrams, counter.get_feature_names_out().tolist(), counter.idf_, directions)


def transform(lsa: LSA, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts; the vector of a text depends on it alone, bit by bit, and not on those beside it.

    Returns:
        ``(N, D)`` vectors of length 1; zero for a text without any known term.
    """
    if not texts:
        return np.empty((0, len(lsa.directions)), dtype=np.float32)
    counter = _counter(lsa.analyzer, lsa.ngrams, vocabulary={term: column for column, term in enumerate(lsa.terms)})
    counter.idf_ = lsa.idf
    return unit_rows(np.asarray(counter.transform(texts) @ lsa.directions.T))


def save(lsa: LSA, folder: Path) -> None:
    """Write ``lsa.json`` and ``lsa.safetensors``."""
    told = {"analyzer": lsa.analyzer, "ngrams": lsa.ngrams, "terms": lsa.terms}
    (folder / "lsa.json").write_text(json.dumps(told, ensure_ascii=False))
    save_file({"idf": lsa.idf, "directions": lsa.directions}, folder / "lsa.safetensors")


def load(folder: Path) -> LSA:
    """Read what `save` wrote."""
    told = json.loads((folder / "lsa.json").read_text())
    arrays = load_file(folder / "lsa.safetensors")
    return LSA(told["analyzer"], tuple(told["ngrams"]), told["terms"], arrays["idf"], arrays["directions"])


def _counter(
    analyzer: Analyzer,
    ngrams: tuple[int, int],
    *,
    max_features: int | None = None,
    vocabulary: dict[str, int] | None = None,
) -> TfidfVectorizer:
    return TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=ngrams,
        max_features=max_features,
        vocabulary=vocabulary,
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b" if analyzer == "word" else None,  # one-letter words tell ads apart, too
    )
