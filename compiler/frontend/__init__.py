"""From a model's code to Relax: tracing, translation, and what tracing cannot know."""
