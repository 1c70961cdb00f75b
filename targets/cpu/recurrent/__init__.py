"""Recurrences: a task takes all of a sequence's tokens in a block of channels, whose state stays in registers or in the nearest cache."""
