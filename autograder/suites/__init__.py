"""The hidden pytest suites, one a chapter."""
