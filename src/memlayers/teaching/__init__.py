"""From facts to a taught memory: calibrate, gate, teach, settle, save."""
