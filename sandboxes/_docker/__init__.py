"""Docker: the engine, images, containers and the volumes that hold workspaces."""
