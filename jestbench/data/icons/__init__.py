"""Where do the demonstration's pairs come from? Icon packages, drawn, grouped and split.

May import `jestbench.data` and what stands below it.
"""
