"""Training: a recipe for each system over one loop (``loop.py``) and a disk cache of the frozen encoder's features (``features.py``)."""
