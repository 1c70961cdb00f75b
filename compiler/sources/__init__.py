"""Where models come from: Hugging Face directories, GGUF files, hub ids, built-in names."""
