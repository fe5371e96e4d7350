"""What a study leaves for readers: pages, tables and figures, all from its ``result.json``."""
