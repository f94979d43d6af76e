"""How fast is it beside others? Ratios against peers and floors, measured in one run.

May import everything else.
"""
