"""A store and a plain torch model, driven through the same random sequence of what users do."""
