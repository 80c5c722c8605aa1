"""How busy a GPU is kept: what is timed, and a row of it in a process of its own."""
