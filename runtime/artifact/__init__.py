"""The artifact: a folder with everything that a model needs to run, and the only contract between compiler and runtime."""
