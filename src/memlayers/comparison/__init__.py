"""A memory against what a user would pick instead, on the same facts and questions (`memlayers compare`)."""
