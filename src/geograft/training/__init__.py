"""The training loop: data loading, augmentation, optimization, checkpoints and distributed training."""
