"""Many processes: who shares a store's state, what they say to each other, and how they find out that they differ."""
