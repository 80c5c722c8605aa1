"""Training a model, watching it, and what a run leaves behind."""
