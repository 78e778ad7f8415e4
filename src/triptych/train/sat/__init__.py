"""Training Show, Attend and Tell."""
