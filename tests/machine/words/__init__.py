"""What users do, one file per subject. A word does the same to both twins; `agreement.py` says what must hold."""
