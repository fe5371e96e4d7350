"""Latent semantic analysis: TF-IDF of the texts' n-grams, then the leading singular directions."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from leadre.embedding.unit_rows import unit_rows


def lsa_vectors(
    texts: Sequence[str],
    *,
    dimension: int,
    analyzer: Literal["word", "char_wb"],
    ngrams: tuple[int, int],
    max_terms: int,
    seed: int,
) -> NDArray[np.float32]:
    """Embed texts by the words they share with each other.

    Args:
        texts: N texts.
        dimension: Width D. Where there are fewer texts or terms than D, the columns past the smaller number are zero.
        analyzer: ``word`` counts words, ``char_wb`` characters inside words: for languages without spaces.
        ngrams: The shortest and the longest n-gram that counts as a term.
        max_terms: The most frequent terms that are kept.
        seed: Of the randomized decomposition.

    Returns:
        ``(N, D)`` vectors of length 1; zero for a text without any term.

    Raises:
        ValueError: If no text has a term, or the n-gram range is upside down.
    """
    if ngrams[0] > ngrams[1]:
        raise ValueError(f"ngrams is {list(ngrams)}, but the shortest comes first: use {[ngrams[1], ngrams[0]]}")
    terms = TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=ngrams,
        max_features=max_terms,
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b" if analyzer == "word" else None,  # one-letter words tell ads apart, too
    )
    try:
        weights = terms.fit_transform(texts)
    except ValueError as error:
        raise ValueError(
            f"texts: none of the {len(texts)} descriptions has a term ({analyzer} n-grams); "
            "check that the ads have a name, a category or attributes"
        ) from error
    rank = min(dimension, *weights.shape)
    # A single column is a length, not a direction: the decomposition needs two terms.
    directions = TruncatedSVD(rank, random_state=seed).fit_transform(weights) if rank > 1 else weights.sum(1)
    vectors = np.zeros((len(texts), dimension), dtype=np.float32)
    vectors[:, :rank] = unit_rows(np.asarray(directions))
    return vectors
