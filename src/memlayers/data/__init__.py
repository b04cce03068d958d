"""From files and text to facts, and from facts to token sequences."""
