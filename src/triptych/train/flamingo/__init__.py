"""Training Flamingo."""
