"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# Compiled code and a shared machine make single examples slow now and then: no deadline. `make test` takes
# hypothesis' own "ci" profile, whose examples are the same on every run.
settings.register_profile("cupola", deadline=None)
settings.load_profile("cupola")
