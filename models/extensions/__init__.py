"""What can be switched on beside the default network, one file each."""
