"""The files that a run keeps in its workdir: checkpoints, metrics and a lock."""
