"""Which sample comes next, and how it is cut: pure functions of numbers."""
