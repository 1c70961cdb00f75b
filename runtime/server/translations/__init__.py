"""Other vendors' endpoints as translations onto chat completions: a request becomes a chat request, its answer is said in other words."""
