"""cupola: compile large language models for your hardware, and run them."""
