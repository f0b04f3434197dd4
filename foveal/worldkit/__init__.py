"""What the sample world is made of: a catalogue of kinds, drawn sprites, places, light and cameras, and plain words."""
