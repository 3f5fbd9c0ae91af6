"""Training (section 5 of the paper): recipe, trainer, checkpoints and the record of a run."""
