"""Text: tokenizers, chat templates and streams of text."""
