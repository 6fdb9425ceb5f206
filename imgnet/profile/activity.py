"""What the time of a worker is spent on, by the names that a trace has."""

from enum import Enum


class Activity(Enum):
    """What a worker does at a moment. Where spans lie in one another, the inner one says it."""

    data = "data"
    """Waits for its next batch."""
    forward = "forward"
    backward = "backward"
    update = "update"
    """Clips, makes the optimizer's step, and takes in what others have sent."""
    exposed = "wait for communication"
    """Has nothing to compute until messages have come."""
    between = "between steps"
    """Evaluates or saves; no step's time."""
