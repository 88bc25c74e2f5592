"""Integers, then bytes: what a variable is, where it lies, and the contiguous buffers over the layout."""
