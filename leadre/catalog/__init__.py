"""The catalog: which ads may be generated, their S-IDs, and the trie that holds them all."""
