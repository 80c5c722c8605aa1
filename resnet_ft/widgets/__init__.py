"""ipywidgets over the functions of this library."""
