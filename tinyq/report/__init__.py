"""Reports for people: tables of a compilation, a verification, a profile."""
