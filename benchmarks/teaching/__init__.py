"""What teaching reaches: recall, capacity, and what each setting and recipe costs."""
