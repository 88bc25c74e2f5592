"""The torch backend: the same operations and signatures as the Triton plan, no triton."""
