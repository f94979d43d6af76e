"""Does it pay? Run folders to statistics to tables, plots and a page.

May import `jestbench.launch` and what stands below it.
"""
