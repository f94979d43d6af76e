"""What is a tower? Towers, how a view runs on them, the pair head, tokenizers.

May import `jestbench.select` and what stands below it.
"""
