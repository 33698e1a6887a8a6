"""Reading: from files to documents."""
