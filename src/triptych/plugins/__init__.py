"""Triptych inside other tools: an MCP server for assistants, models for the ``llm`` command and for lmms-eval."""
