"""The model for other engines, and weights of other toolkits."""
