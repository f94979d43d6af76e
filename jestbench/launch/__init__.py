"""How does a run start? The command builds the stages, trains, rehearses, forecasts and fills caches.

May import `jestbench.loop`, `jestbench.runs` and the packages below them.
"""
