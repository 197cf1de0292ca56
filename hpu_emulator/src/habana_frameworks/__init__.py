"""The names of the Intel Gaudi PyTorch package, over habana_torch_plugin_emulator: an emulation on CPU memory."""
