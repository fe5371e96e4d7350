"""What a run has found, for people: a table, pictures, a page, and one table over the runs of a sweep."""
