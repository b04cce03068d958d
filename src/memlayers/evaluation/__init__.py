"""How a memory is scored, and how the scores are shown."""
