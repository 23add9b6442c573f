"""Benchmarks: seconds of rounds, rules and gradients, beside a floor and beside other libraries."""
