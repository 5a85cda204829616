"""The ingredients of training as declared variants: optimizers, schedules, norms, augmentations; running averages."""
