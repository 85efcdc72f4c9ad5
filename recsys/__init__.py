"""Recommendation: logged data, estimators and learners.

log = recsys.dataframe(frame, action="item", rewards=["click"], propensity="p", user="user_id")
recsys.evaluate(log, {"new": new_policy, "uniform": "uniform"}).show()
"""

from recsys.bandit.evaluate import Evaluation, evaluate
from recsys.logs.formats import dataframe

__all__ = ["Evaluation", "dataframe", "evaluate"]
