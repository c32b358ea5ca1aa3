"""One typed tree for a run: what a recipe may say, how it is read, and the plain numbers that others get."""
