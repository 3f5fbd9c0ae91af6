"""A page that explains the Transformer by running a trained model in the browser."""
