"""Work: who does it, what is done of it, where it goes and how far it is."""
