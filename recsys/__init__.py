"""Recommendation: logged data, estimators and learners.

log = recsys.dataframe(frame, action="item", rewards=["click"], propensity="p", user="user_id")
recsys.evaluate(log, {"new": new_policy, "uniform": "uniform"}).show()
"""

from recsys.bandit.evaluate import evaluate
from recsys.bandit.importance_weights import LoggerInfo
from recsys.evaluation import Evaluation
from recsys.logs.formats import dataframe
from recsys.sequential.evaluate import evaluate_sessions

__all__ = ["Evaluation", "LoggerInfo", "dataframe", "evaluate", "evaluate_sessions"]
