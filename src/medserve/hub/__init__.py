"""Weights are fetched once, checked against what was promised, and known by name from then on.

`pulling.py` takes a short name of the MedGemma family, a repository of a hub, or files of one's own; `store.py` keeps
what is known of them; `picking.py` says which engine runs what; `fitting.py` what that takes of the memory.
"""
