"""Earlier name of `recsys.problems.sequential`."""

from recsys.problems.sequential import recipe as recipe
