"""The language model that knows S-IDs: its vocabulary, its tokens, and its folder on disk."""
