"""Training: the step, its optimizers and augmentation, the loop over epochs, many devices."""
