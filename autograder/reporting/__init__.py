"""Feedback, class report and exports."""
