"""What other variable stores and optimizers do, row by row: the mark of a test names the row."""
