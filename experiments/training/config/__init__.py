"""Configuration of a run: its options, presets, sizes, stored form and the lines printed before it starts."""
