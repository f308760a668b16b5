"""The demo model is drawn, trained, exported and measured by this package alone, with no data from outside."""
