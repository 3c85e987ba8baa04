"""Pictures of what the networks and the laws do."""
