"""The record of a variable, the registry of all of them, selectors, and who holds a variable."""
