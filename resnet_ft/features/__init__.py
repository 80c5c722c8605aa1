"""The outputs of a model's frozen part, computed once and kept."""
