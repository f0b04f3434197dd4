"""Teachers -> pseudo-labels -> student -> export. Import the module you need; this file loads nothing."""
