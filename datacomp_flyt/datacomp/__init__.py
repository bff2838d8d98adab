"""DataComp's own facts: its scales, its environment, its checkout and its resharder's output."""
