"""What does a run leave? The run folder: checkpoints, metrics, W&B, examples.

May import `jestbench.config` and what stands below it.
"""
