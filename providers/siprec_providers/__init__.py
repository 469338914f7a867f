"""The providers that ship with the bridge; it finds them by entry point, as it finds anyone's."""
