"""How good is the learner? Zero-shot, retrieval and few-shot figures.

May import `jestbench.engine` and what stands below it.
"""
