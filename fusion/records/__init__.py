"""What a run decided: kept, reported, planned and made again."""

from .contributions import Effects
from .decisions import SCORES, WEIGHTS, Block, CallDecisions, Decision, Rows, in_order, log_ratios_of, merged, read_back
from .plan import MOST_BYTES, Plan, PlanError, PlannedCall, loads, plan_of
from .record import RoutingRecord, empty_record, record_of
from .replay import Replay, ReplayedCall

__all__ = [
    "Block",
    "CallDecisions",
    "Decision",
    "Effects",
    "MOST_BYTES",
    "Plan",
    "PlanError",
    "PlannedCall",
    "Replay",
    "ReplayedCall",
    "RoutingRecord",
    "Rows",
    "SCORES",
    "WEIGHTS",
    "empty_record",
    "in_order",
    "loads",
    "merged",
    "log_ratios_of",
    "plan_of",
    "read_back",
    "record_of",
]
