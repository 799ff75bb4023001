"""Importers: other layouts become a manifest. One module a layout."""
