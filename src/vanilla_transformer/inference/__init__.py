"""From a saved model and sentences to translations and scores."""
