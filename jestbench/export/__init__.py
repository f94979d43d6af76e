"""Who else can open it? A trained model as a folder for other people's tools.

May import `jestbench.compare` and what stands below it.
"""
