"""Attempts to break the privacy of a run, and what they prove of its epsilon."""
