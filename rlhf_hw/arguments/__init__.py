"""The flags of the stages: dataclasses with help, the parser over them, and their checks. No device is touched."""
