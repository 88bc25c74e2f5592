"""What users of PyTorch do with modules, gradients, optimizers and frameworks, and can keep doing."""
