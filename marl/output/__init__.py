"""Everything that a person sees: console, reports, tables."""
