"""LEADRE: an LLM that retrieves display ads by generating their semantic IDs (arXiv 2411.13789)."""
