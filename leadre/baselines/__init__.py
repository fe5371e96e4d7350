"""Simple recommenders that LEADRE is measured against."""
