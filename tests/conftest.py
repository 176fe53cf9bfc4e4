"""Properties are checked without a deadline: a loaded machine makes no property false."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
