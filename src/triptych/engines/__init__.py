"""Engines compute the three systems. ``interface``: their Protocols; ``torch``: the reference; ``onnx``: fast on CPUs; ``choice``: which
one runs a checkpoint."""
