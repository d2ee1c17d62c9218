"""Stop anywhere, go on exactly: what a run is made of, and how it is written; and files that nobody vouches for."""
