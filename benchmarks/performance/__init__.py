"""Memory and time: of the kernels, of a teaching step, and of a whole teaching."""
