"""What a run decided: kept, reported, planned and made again."""

from .decisions import CallDecisions, Decision, in_order, log_ratios_of, merged, read_back
from .plan import MOST_BYTES, Plan, PlanError, PlannedCall, loads, plan_of
from .record import RoutingRecord, empty_record, record_of
from .replay import Replay, ReplayedCall

__all__ = [
    "CallDecisions",
    "Decision",
    "MOST_BYTES",
    "Plan",
    "PlanError",
    "PlannedCall",
    "Replay",
    "ReplayedCall",
    "RoutingRecord",
    "empty_record",
    "in_order",
    "loads",
    "merged",
    "log_ratios_of",
    "plan_of",
    "read_back",
    "record_of",
]
