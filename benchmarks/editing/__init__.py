"""What edits of a memory cost, keep and lose."""
