"""Modules and names: adopt, capture, meta device, rebind, declare by path."""
