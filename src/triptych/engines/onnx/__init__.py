"""The engine for CPUs: ONNX Runtime over graphs that are written here from our own weights, quantised, without torch.

``opening`` opens a checkpoint. ``building`` and the ``*_graph`` modules write graphs; ``sat``, ``flamingo`` and ``blip2`` run them.
"""
