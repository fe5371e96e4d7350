"""One file a source of data; each has ``sources`` (the files it reads) and ``load`` (the world they tell)."""
