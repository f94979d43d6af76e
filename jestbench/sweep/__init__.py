"""How are many arms run? W&B sweep files without a server, several jobs at once.

May import `jestbench.compare` and the packages below it.
"""
