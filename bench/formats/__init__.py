"""Storage formats side by side: the main job in all of them, and what each does to an update (`README.md` of bench)."""
