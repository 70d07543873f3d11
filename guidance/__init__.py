"""Metric guidance: image encoders, similarity losses, corrections and schedules (torch only)."""
