"""What all tests share."""

from hypothesis import settings

pytest_plugins = ["tests.ranks"]

# Every rank must draw the same examples, so nothing may depend on chance, on the clock or on what a rank has stored.
settings.register_profile("ranks", derandomize=True, database=None, deadline=None)
settings.load_profile("ranks")
