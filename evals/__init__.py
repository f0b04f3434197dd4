"""How good is it: metrics, tasks, scenarios, gates, reports. Import the module you need; this file loads nothing."""
