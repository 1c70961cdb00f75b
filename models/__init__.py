"""Model families: only what tracing cannot know, and which families are verified."""
