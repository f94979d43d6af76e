"""Who runs models? The learner, frozen models, scorers: nothing else spends what has to be charged.

May import `jestbench.data` and what stands below it.
"""
