"""The part that ships: artifact, KV manager, scheduler, sampler, engine. Imports no other room."""
