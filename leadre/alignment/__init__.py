"""Alignment with business value: pairs of plausible ads, the more valuable one preferred (LEADRE 4.3.2)."""
