"""A saved model predicts new images."""
