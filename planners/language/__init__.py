"""Language models behind one interface, with a cache of answers and an account of what they cost."""
