"""What fits into a machine, and what a teaching step costs there."""
