"""Load a saved model, translate with it, and score translations."""
