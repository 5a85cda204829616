"""What decides a run: options, presets, sizes, what its workdir stores of them, and what is said before it starts."""
