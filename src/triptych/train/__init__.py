"""Training: one recipe per system over a common loop (``loop.py``) and a disk cache of the frozen encoder's work (``features.py``)."""
