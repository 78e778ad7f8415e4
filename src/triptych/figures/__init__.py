"""Figures and pages that show where a model looked."""
