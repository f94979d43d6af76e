"""Where do pairs come from? Pairs, super-batches, the cascade, decoding, captions.

May import `jestbench.model` and what stands below it.
"""
