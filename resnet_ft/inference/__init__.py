"""A saved model put to use."""
