"""Components by name, and as plain values: dicts, JSON, TOML, expressions of a command line."""
