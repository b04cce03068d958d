"""A server whose knowledge is edited while it answers: memories behind an API like OpenAI's, and a page."""
