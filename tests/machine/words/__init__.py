"""What users do, one file per subject. A word does the same to both twins, and leaves to `agreement.py` what must hold."""
