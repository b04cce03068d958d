"""Which stored subjects a text mentions, and by which surface forms."""
