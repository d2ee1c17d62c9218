"""What is there: sizes, work, dead units, integer arithmetic."""
