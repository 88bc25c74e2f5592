"""Checkpoints: the format, what loads where, what survives a crash, and that a resumed run is the same run."""
