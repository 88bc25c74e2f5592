"""What tests share: references, tolerances, guarded memory, launch counts, compiled code."""
