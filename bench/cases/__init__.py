"""The cases: what each measures, the bytes it has to move, and the gate before its numbers."""
