"""Measures of how good captions and answers are."""
