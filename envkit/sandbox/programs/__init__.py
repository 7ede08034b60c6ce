"""Programs that graders run inside sandboxes. Standard library only; a zygote compiles them ahead."""
