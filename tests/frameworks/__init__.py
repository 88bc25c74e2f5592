"""Whole frameworks train as with torch.optim: the extra `frameworks` brings them."""
