"""Training algorithms, one family a file: each with its client half and its server half."""
