"""What all rules share: the two hooks, Gram matrices, passes over blocks of columns."""
