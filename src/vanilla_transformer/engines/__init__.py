"""Other programs that translate with a model of ours, in place of torch."""
