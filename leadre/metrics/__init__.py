"""How good the recommended lists are: hits, value, diversity, and how sure the numbers are (LEADRE 5.1.2, 5.2.3)."""
