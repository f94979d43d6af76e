"""Who else is in this run? The processes of a run, their collectives, the device and its number format.

May import `jestbench.batch`, `jestbench.seeds`, `jestbench.disk`.
"""
