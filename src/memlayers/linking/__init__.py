"""Linking: which stored subjects a text mentions, and in which surface forms."""
