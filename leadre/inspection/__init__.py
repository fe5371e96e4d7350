"""The inspection: how well an index tells ads apart, and whether ads that are alike have S-IDs that are alike."""
