"""Python imports this when it starts, where this folder is on PYTHONPATH."""

import without_posix

without_posix.install()
