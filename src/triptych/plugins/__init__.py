"""Triptych inside other tools: an MCP server for assistants, and models for the ``llm`` command."""
