"""Decisions as pure functions over numpy arrays: snapshot in, plan out."""
