"""What lies on disk: formats, pretrained parts, key tables, language models."""
