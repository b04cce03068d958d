"""Every setting, in sections, each with its default and what it means: from Python, YAML and flags. Loads no torch."""
