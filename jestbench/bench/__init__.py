"""How fast is jestbench? Ratios to peer packages and to bare matrix products, measured in one run.

May import everything else.
"""
