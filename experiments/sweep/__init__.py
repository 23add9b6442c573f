"""Studies run: many experiments at once, in processes or on a Ray cluster, and searches for step sizes."""
