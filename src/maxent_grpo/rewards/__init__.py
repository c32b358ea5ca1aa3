"""From sampled texts to utilities: named reward functions, and the scorer that survives their bugs."""
