"""From what people have to facts: tables and documents read, claims found in them, worded as facts, and checked."""
