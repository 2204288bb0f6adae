"""The CPU backend: a whole forward pass in one call of a C++ library, over quantised weights.

A row's bits depend on nothing but its own context. `kernels/` is the library, `runner.py` its face to
the engine.
"""
