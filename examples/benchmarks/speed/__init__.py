"""Seconds and bytes, beside the alternative."""
