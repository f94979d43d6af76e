"""Who starts it? The command: builds the stages, trains, rehearses, forecasts, fills caches.

May import `jestbench.loop`, `jestbench.runs` and what stands below them.
"""
