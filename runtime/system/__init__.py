"""The parts of the runtime that differ between systems: a file a concern, each with an implementation for systems without POSIX's."""
