"""From a checkpoint to an artifact: importers, the pass pipeline, weight packing, build, the command line."""
