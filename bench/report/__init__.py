"""What is made of results: the table that is printed last, and the pages that are generated."""
