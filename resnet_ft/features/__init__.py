"""What the frozen part of a network puts out, computed once and kept."""
