"""The language model that Concord brings: small, and trained at first use to plan in one world, with mistakes."""
