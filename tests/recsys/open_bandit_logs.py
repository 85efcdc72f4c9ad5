"""The Open Bandit sample, read without the package's own readers."""

import csv
import gzip
from pathlib import Path

import numpy as np

import recsys

LOGS = Path(recsys.__file__).parent / "data" / "open_bandit"


def open_bandit(campaign, logged_by):
    """Weights of the other policy than the logging one, and clicks."""
    with gzip.open(LOGS / f"{logged_by}_{campaign}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    item, position = (np.array([int(row[name]) for row in rows]) for name in ("item_id", "position"))
    propensity = np.array([float(row["propensity_score"]) for row in rows])
    table = np.loadtxt(LOGS / f"bts_action_dist_{campaign}.csv", delimiter=",", skiprows=1)[:, 1:]
    target = table[item, position - 1] if logged_by == "random" else np.full(len(rows), 1 / len(table))
    return target / propensity, np.array([float(row["click"]) for row in rows])
