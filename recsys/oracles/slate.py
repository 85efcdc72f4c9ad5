"""Earlier name of `recsys.problems.slate`."""

from recsys.problems.slate import recipe as recipe
