"""Which formats are read? One file a format, and the readers that they share.

May import `jestbench.data` and what stands below it.
"""
