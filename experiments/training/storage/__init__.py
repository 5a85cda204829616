"""What a run keeps in its workdir: checkpoints, metrics, a lock."""
