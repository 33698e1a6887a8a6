"""Tokens: from documents to shards, and between token files."""
