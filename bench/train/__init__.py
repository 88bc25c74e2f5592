"""The main job: a GPT trained twice on real text. `__main__.py` tells the story, one file each tells the rest."""
