"""What is kept of a run on disk: exported models, and all that every worker needs to go on.

No file here executes code when it is read: tensors are safetensors, everything else is JSON.
"""
