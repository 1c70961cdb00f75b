"""Packages of an artifact with its runtime, for machines without cupola: wheels, and folders in a zip."""
