"""A store and a plain torch model, driven through the same random sequence of what users do.

`twins.py` is the model, `cycle.py` its gradients, `words/` what users do, one file per subject; `agreement.py` says
what must hold after every word. `test_machine.py` runs fixed sequences, `explore.py` others.
"""
