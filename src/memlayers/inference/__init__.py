"""A memory opened and asked: generation, scoring, confidence."""
