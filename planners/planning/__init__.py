"""Planning by a language model and a critic, from a config to a report: `concord run planning/kitchen`."""
