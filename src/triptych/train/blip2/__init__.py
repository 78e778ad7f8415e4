"""Training BLIP-2."""
