"""Merges made once, before sampling."""
