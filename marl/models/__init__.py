"""Networks, distributions, policies and critics."""
