"""Overlap: which documents share their words, and writing a corpus without them."""
