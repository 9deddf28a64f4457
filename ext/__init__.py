"""The book's Sphinx extension and what its lessons use to show figures and widgets."""
