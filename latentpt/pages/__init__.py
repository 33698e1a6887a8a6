"""How results are shown: pages that need no other file, drawings, tables."""
