"""Scripts that measure what the project claims: each is run as ``python -m benchmarks.SUBJECT.NAME``."""
