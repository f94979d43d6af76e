"""What is a tower? Towers, their views, the pair head, tokenizers.

May import `jestbench.select` and what stands below it.
"""
