"""The data room: imports an ad world from its source, refuses bad rows visibly, and splits behaviors in time."""
