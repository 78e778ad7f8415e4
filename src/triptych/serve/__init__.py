"""A server for the three systems: OpenAI's and Ollama's wire formats, our own routes, and a web page."""
