"""Constrained decoding: the language model generates ads of the catalog, and nothing else."""
