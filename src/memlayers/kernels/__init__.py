"""The lookup's arithmetic: `reference` is plain torch, and every faster path is tested against it."""
