"""What training is made of, each a declared variant: optimizers, schedules, norms, augmentation, running averages."""
