"""Update rules and learning-rate schedules. Import from the modules: ``schedule`` does not need torch."""
