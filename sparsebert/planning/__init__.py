"""Planning: which layers become sparse, in which packed format, and how fast they run on this device."""
