"""The bench: what a teaching step costs, stage by stage, against the machine's roofs and against other ways."""
