"""What the runs say: tables, pictures, verdicts, one page, and every figure as data."""
