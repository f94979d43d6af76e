"""What was asked? Text to bindings to a run; the only room that imports gin and the policies.

May import `jestbench.evals` and what stands below it.
"""
