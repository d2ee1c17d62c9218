"""One training as a value: what it is, who trains it, where its result lies, and what results say together."""
