"""Share a model: its card, the push, and the check of what arrived."""
