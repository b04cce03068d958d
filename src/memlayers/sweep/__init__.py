"""A grid of memories, taught and scored: the evaluation protocol (`memlayers eval --protocol full`)."""
