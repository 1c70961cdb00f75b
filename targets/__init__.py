"""Targets: their TVM targets, kernel rules, schedules and lowering."""
