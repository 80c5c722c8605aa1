"""What a model predicts for a data set, and how good that is."""
