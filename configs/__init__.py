"""Commented settings files and unit files, shipped with the package."""
