"""Lists of ads for many users: sharded, resumable, as wide as the machines at hand."""
