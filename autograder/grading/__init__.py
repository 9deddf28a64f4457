"""Collect, run, score and record submissions."""
