"""Text and files: from sentence pairs to batches."""
