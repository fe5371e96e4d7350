"""Simple recommenders that LEADRE is measured against, and the labels of another retrieval strategy."""
