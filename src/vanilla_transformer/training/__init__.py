"""Section 5 of the paper: the recipe, the trainer, checkpoints and what a run says of itself."""
