"""Embeddings: the text of each ad to a vector (LEADRE 3.2)."""
