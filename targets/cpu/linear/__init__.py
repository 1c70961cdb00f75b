"""Linear layers on CPUs."""
