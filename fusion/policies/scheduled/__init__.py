"""Policies that decide from weight statistics and the step: no features are looked at."""
