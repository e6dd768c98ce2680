"""Importers of model files; each is the only importer of its package."""
