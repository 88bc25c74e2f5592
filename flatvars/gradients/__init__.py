"""Where gradients lie, which variables have one, norms and clipping, views, element masks."""
