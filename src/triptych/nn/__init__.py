"""Building blocks of the networks: masks, attention, caches, encoders, the decoder-only language model, the Q-Former."""
