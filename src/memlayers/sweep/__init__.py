"""A grid of memories, taught and scored: the evaluation protocol (`memlayers sweep`)."""
