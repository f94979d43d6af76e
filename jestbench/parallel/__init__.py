"""Which processes share this run? Their collectives, the device and its number format.

May import `jestbench.batch`, `jestbench.seeds`, `jestbench.disk`.
"""
