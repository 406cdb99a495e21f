"""Planning: select the layers that become sparse, their packed formats and the expected times on a device."""
