"""How are many arms run? W&B sweep files without a server, jobs side by side.

May import `jestbench.compare` and what stands below it.
"""
