"""Reference solutions, one module a chapter."""
