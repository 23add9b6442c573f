"""The link between a server and its devices: gRPC with mutual TLS; what travels is numbers and text, never code."""
