"""The command line: parsing, and one thin call for each sub-command."""
