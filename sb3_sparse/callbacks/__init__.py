"""When masks, precision and replay change while a network trains."""
