"""Everything that touches student code; imports neither suites nor solutions."""
