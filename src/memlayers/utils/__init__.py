"""What every other package may use: errors, files, progress bars, the environment of a run."""
