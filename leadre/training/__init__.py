"""How every network here is trained: one deterministic list of batches, one resumable Lightning fit."""
