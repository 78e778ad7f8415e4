"""Text: prompts, vocabularies and tokenizers."""
