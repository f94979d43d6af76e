"""Does a policy pay? From run folders to statistics, tables, plots and a page.

May import `jestbench.launch` and the packages below it.
"""
