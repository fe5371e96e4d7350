"""Another retrieval strategy of the platform, a ranker by value: whose ads LTRR@K looks for (LEADRE 5.1.2)."""
