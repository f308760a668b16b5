"""A corpus of hostile files, the same on every machine, and a runner that counts what becomes of them."""
