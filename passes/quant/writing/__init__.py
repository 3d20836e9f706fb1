"""How integers are written into a graph."""
