"""From raw text to shards: `python -m data_prep --help` lists the commands."""
