"""What a model says of a data set, and how good that is."""
