"""Plans of language models that a learned advantage accepts, or sends back (ReAd)."""
