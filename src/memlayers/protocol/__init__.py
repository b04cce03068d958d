"""The full protocol: a grid of teaching runs, one JSON file each, and the results page drawn from these files alone."""
