"""One file for each table and figure."""
