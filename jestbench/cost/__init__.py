"""What does it cost? Traced multiply-adds, the price of a pass under a view, the ledger, the budget.

May import `jestbench.parallel` and what stands below it.
"""
