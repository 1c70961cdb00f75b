"""The command line: one file a command, each driving the public API as a user's program would."""
