"""Models: built, frozen, saved and loaded."""
