"""From a comparison's configuration to runs of stated size, length and cost."""
