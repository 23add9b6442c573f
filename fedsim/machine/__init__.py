"""The machine below: threads, memory, and files that are written whole."""
