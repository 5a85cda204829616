"""Training: configuration, devices, steps, the loop and what it leaves on disk. Importable from a notebook."""
