"""Metrics of captions: BLEU, METEOR, ROUGE-L, CIDEr-D."""
