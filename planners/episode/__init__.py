"""An episode as people see it: its story, followed while it is played, told on the console and on a page."""
