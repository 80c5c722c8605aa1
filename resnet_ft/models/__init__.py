"""Networks: built, frozen, saved and loaded."""
