"""What fusing costs: counted exactly (launches, bytes, synchronisations), then timed."""
