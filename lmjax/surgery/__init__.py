"""How a run begins with the variables of another one of a different shape or kind."""
