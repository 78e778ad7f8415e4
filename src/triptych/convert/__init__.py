"""Checkpoints of other projects -> ours: a table of keys for each published layout; ``opening`` finds and converts what a name means."""
