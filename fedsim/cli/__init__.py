"""The command line, and the live progress of runs and sweeps."""
