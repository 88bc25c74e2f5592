"""The library inside a program: what users do to modules, parameters and memory, and what the store says to it."""
