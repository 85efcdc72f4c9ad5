"""Batches, returns, losses and the learners that own them."""
