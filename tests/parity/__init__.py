"""The library beside torch.optim: the same curve, the same state, the same rules about None."""
