"""What computes the three systems. ``interface`` says what the tasks ask of an engine; ``torch`` is the reference, ``onnx`` is fast on
CPUs, ``choice`` decides."""
