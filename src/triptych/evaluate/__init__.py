"""Evaluation of models over data sets: captions, retrieval, questions, choices, few-shot names."""
